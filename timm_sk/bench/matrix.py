"""What is measured: cases, and in each the variants that are timed side by side."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from ..registry import architectures, require_model
from .counterparts import PLAIN_BACKBONES, branch_counts, has_timm

SIDES = ('ours', 'timm', 'plain')
GRAPH = '+graph'  # suffix of a form whose forward pass is launched as one CUDA graph
# Forms, each after the one that it is compared with: timm's closest form for those that only ours has, else the same
_CLOSEST_FORMS = {
    'eager': None,
    'reparameterized': 'eager',
    'folded': 'eager',
    'folded_merged': 'eager',
    'folded_joined': 'eager',
    'deployed': 'eager',
    'merged': 'eager',
    'compiled': None,
    'inductor': 'compiled',
    'max_autotune': None,
}
FORMS = (*_CLOSEST_FORMS, *(f'{form}{GRAPH}' for form in _CLOSEST_FORMS if form not in ('merged', 'max_autotune')))
DEFAULT_FORMS = ('eager', 'reparameterized', 'deployed', 'merged', 'compiled')
_TRAINING_FORMS = ('eager', 'merged', 'compiled', 'max_autotune')
TASKS = ('inference', 'training')
MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

MODELS = ('skresnet34', 'skresnext50_32x4d', 'sknet50', 'resnest50d')
DEPTHS = ('skresnet18', 'skresnet34', 'skresnet26', 'skresnet50', 'skresnet101')
SCALING: dict[str, tuple[int, ...]] = {
    'batch': (1, 2, 4, 8, 16, 32, 64),
    'resolution': (128, 160, 192, 224, 288, 352, 448),
    'branches': (),  # those of `branch_counts`
    'depth': (),  # the architectures themselves are the points
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture in one setting; its variants run interleaved in one process.

    Attributes:
        arch: One of our architectures.
        dtype: Dtype of model and input at inference; that of autocast, with float32 parameters, in training.
        memory_format: Memory format of weights and input.
        task: 'inference', or 'training' for one step of SGD.
        batch: Images in a step.
        size: Height and width of an image in pixels.
        branches: Number of branches, the radix of a ResNeSt; None for the architecture's own.
        scaling: Axis of `SCALING` that this case is a point of, or ''.
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
    """A model of one side in one form."""

    side: str
    form: str

    def __str__(self) -> str:
        return f'{self.side} {self.form}'


CONVOLUTIONS = Variant('convolutions', 'eager')  # the convolutions of the first variant alone


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

    Names are explained in `Case`. Training steps of one image are omitted: the attention's BatchNorm would see one
    value per channel.

    Raises:
        ValueError: If a name is unknown, or the architecture is not ours or has a fixed number of branches.
    """
    require_names('dtype', dtypes, DTYPES)
    require_names('memory format', memory_formats, MEMORY_FORMATS)
    require_names('task', tasks, TASKS)
    require_names('axis', [scaling], (*SCALING, ''))
    for arch in models:
        require_model(arch)
        if arch not in architectures():
            raise ValueError(f'{arch} is not an architecture of timm_sk: timm-sk list shows those that are.')
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
    """Raise ValueError if there is no name, or an unknown one."""
    for name in names or ['']:
        if name not in known:
            raise ValueError(f'Unknown {kind} "{name}": expected {", ".join(filter(None, known))}.')


def variants(case: Case, *, forms: Sequence[str], sides: Sequence[str]) -> list[Variant]:
    """The variants of a case, each after the one it is compared with.

    Only ours have the forms that `reparameterize_model` and `deploy` make: timm's and the plain models have nothing to
    fold.
    """
    require_names('form', forms, FORMS)
    require_names('side', sides, SIDES)
    present = ['timm'] if has_timm(case.arch) else []
    if 'plain' in sides and case.branches is None and case.arch in PLAIN_BACKBONES:
        present.append('plain')
    if 'ours' in sides or not has_timm(case.arch):
        present.append('ours')
    chosen = [Variant(present[0], 'eager')]
    for form, side in product(FORMS, present):
        fits_task = form in _TRAINING_FORMS if case.task == 'training' else form != 'merged'
        if form in forms and fits_task and (side == 'ours' or _CLOSEST_FORMS[form.removesuffix(GRAPH)] is None):
            chosen.append(Variant(side, form))
    return list(dict.fromkeys(chosen))


def baseline(variant: Variant, among: Sequence[Variant]) -> Variant | None:
    """What a variant is compared with: timm in the same form, in the closest one, or eager.

    timm's own forms are compared with timm eager. Without a model of timm's, ours eager takes its place.
    """
    first = among[0]
    if variant in (first, CONVOLUTIONS):
        return None
    form = variant.form.removesuffix(GRAPH)
    same = Variant(first.side, (_CLOSEST_FORMS[form] or form) + variant.form[len(form) :])
    return same if variant != same and same in among else first
