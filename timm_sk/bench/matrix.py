"""What is measured: cases, and in each the variants that are timed side by side."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from .counterparts import branch_counts, has_timm, plain_of, require_ours

SIDES = ('ours', 'timm', 'plain')
GRAPH = '+graph'  # the suffix of a form whose forward pass is launched as one CUDA graph
_OUR_FORMS = {  # those without a counterpart, and the form of timm's that each is compared with
    'reparameterized': 'eager',
    'folded': 'eager',
    'folded_merged': 'eager',
    'folded_joined': 'eager',
    'deployed': 'eager',
    'merged': 'eager',
    'inductor': 'compiled',
}
_PLAIN_FORMS = (  # each after what it is compared with
    *('eager', 'reparameterized', 'folded', 'folded_merged', 'folded_joined', 'deployed', 'merged'),
    *('compiled', 'inductor', 'max_autotune'),
)
FORMS = (*_PLAIN_FORMS, *(f'{form}{GRAPH}' for form in _PLAIN_FORMS if form not in ('merged', 'max_autotune')))
DEFAULT_FORMS = ('eager', 'reparameterized', 'deployed', 'merged', 'compiled')
TASKS = ('inference', 'training')
_FORMS_OF_TASKS = {
    'inference': tuple(form for form in FORMS if form != 'merged'),
    'training': ('eager', 'merged', 'compiled', 'max_autotune'),
}
MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

MODELS = ('skresnet34', 'skresnext50_32x4d', 'sknet50', 'resnest50d')
DEPTHS = ('skresnet18', 'skresnet34', 'skresnet26', 'skresnet50', 'skresnet101')
SCALING: dict[str, tuple[int, ...]] = {
    'batch': (1, 2, 4, 8, 16, 32, 64),
    'resolution': (128, 160, 192, 224, 288, 352, 448),
    'branches': (),  # as many as `branch_counts` says
    'depth': (),  # the architectures themselves are the points
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture in one setting; its variants run interleaved in one process.

    Attributes:
        arch: One of our architectures.
        dtype: The model's and its input's at inference; that of autocast, with float32 parameters, in training.
        memory_format: Of the weights and the input.
        task: 'inference', or 'training' for one step of SGD.
        batch: Pictures in a step.
        size: Height and width of a picture in pixels.
        branches: M, the radix of a ResNeSt; None for the architecture's own.
        scaling: The axis of `SCALING` that this case is a point of, or ''.
    """

    arch: str
    dtype: str
    memory_format: str
    task: str
    batch: int
    size: int
    branches: int | None = None
    scaling: str = ''

    def __str__(self) -> str:
        branches = f' M={self.branches}' if self.branches else ''
        shape = f'{self.batch}x3x{self.size}x{self.size}'
        return f'{self.arch}{branches}, {self.task}, {self.dtype}, {self.memory_format}, {shape}'


@dataclass(frozen=True)
class Variant:
    """One way to compute a case: whose model, in which form."""

    side: str
    form: str

    def __str__(self) -> str:
        return f'{self.side} {self.form}'


FLOOR = Variant('floor', 'convolutions')


def cases(
    models: Sequence[str],
    *,
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
    tasks: Sequence[str],
    batch: int = 8,
    size: int = 224,
    scaling: str = '',
) -> Iterator[Case]:
    """Every combination, the points of a scaling axis innermost.

    A training step of one picture is left out: the attention's BatchNorm sees one value per channel.

    Args:
        models: Our architectures.
        dtypes: Keys of `DTYPES`.
        memory_formats: Keys of `MEMORY_FORMATS`.
        tasks: Of `TASKS`.
        batch: Pictures in a step, where it is not the axis.
        size: Height and width, where it is not the axis.
        scaling: A key of `SCALING`, or '' for one point.

    Raises:
        ValueError: If a name is not one of those, or the architecture is not ours or has branches that cannot be set.
    """
    require_names('dtype', dtypes, DTYPES)
    require_names('memory format', memory_formats, MEMORY_FORMATS)
    require_names('task', tasks, TASKS)
    require_names('axis', [scaling], (*SCALING, ''))
    for arch in models:
        require_ours(arch)
    for arch, task, dtype, memory_format in product(models, tasks, dtypes, memory_formats):
        for point in branch_counts(arch) if scaling == 'branches' else SCALING.get(scaling) or (0,):
            case = Case(
                arch=arch,
                dtype=dtype,
                memory_format=memory_format,
                task=task,
                batch=point if scaling == 'batch' else batch,
                size=point if scaling == 'resolution' else size,
                branches=point if scaling == 'branches' else None,
                scaling=scaling,
            )
            if case.batch > 1 or task == 'inference':
                yield case


def require_names(kind: str, names: Sequence[str], known: Collection[str]) -> None:
    """Check that there is at least one name, and that every one is known.

    Raises:
        ValueError: If not; it lists those that are.
    """
    for name in names or ['']:
        if name not in known:
            raise ValueError(f'There is no {kind} "{name}": name some of {", ".join(filter(None, known))}.')


def variants(case: Case, *, forms: Sequence[str], sides: Sequence[str]) -> list[Variant]:
    """The variants of a case, each after the one it is compared with.

    timm's and the plain nets have nothing that `reparameterize_model` would change, and are not deployed, so only ours
    have those forms.
    """
    require_names('form', forms, FORMS)
    require_names('side', sides, SIDES)
    present = [
        side
        for side, there in (
            ('timm', has_timm(case.arch)),
            ('plain', 'plain' in sides and case.branches is None and plain_of(case.arch) is not None),
            ('ours', 'ours' in sides or not has_timm(case.arch)),
        )
        if there
    ]
    chosen = [Variant(present[0], 'eager')]
    for form, side in product(FORMS, present):
        if form not in forms or form not in _FORMS_OF_TASKS[case.task]:
            continue
        if side == 'ours' or form.removesuffix(GRAPH) not in _OUR_FORMS:
            chosen.append(Variant(side, form))
    return list(dict.fromkeys(chosen))


def baseline(variant: Variant, among: Sequence[Variant]) -> Variant | None:
    """What a variant's time is divided into: timm in the same form, in the one nearest to it, or eager.

    timm's own forms are compared with timm eager. Without a model of timm's, ours eager takes its place.
    """
    first = among[0]
    if variant in (first, FLOOR):
        return None
    form = variant.form.removesuffix(GRAPH)
    same = Variant(first.side, _OUR_FORMS.get(form, form) + variant.form[len(form) :])
    return same if variant != same and same in among else first
