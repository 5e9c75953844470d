"""One case from weights to rows: agree, weigh, time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.timing import MIN_WARMUP, Timed, interleave, ratios, require_rounds, summarise
from ..inference.warmup import cudnn_chooses
from .agreement import differences, exact_float32, judge, observe
from .counterparts import build
from .floor import floor_step, record
from .forms import loaded, prepare
from .machine import describe, require_dtype, require_forms
from .matrix import DTYPES, FLOOR, GRAPH, Case, Variant, baseline, variants
from .memory import peak_bytes, saved_bytes
from .random_weights import fill
from .results import Row
from .steps import Step, Training

INPUT_SETS = 3
CHECKED = 8  # images that are compared
DISTURBED = 1.5
_CALIBRATION = (8, 128)  # images, and their largest size: enough for the running statistics

Say = Callable[[str], None]


def measure(
    case: Case,
    *,
    forms: Sequence[str],
    sides: Sequence[str],
    device: torch.device,
    rounds: int | None = 7,
    warmup: int = MIN_WARMUP,
    say: Say = lambda line: None,
) -> Iterator[list[Row]]:
    """Measure the variants of a case, form by form; those that disagree with their reference get no speed.

    Args:
        case: The setting.
        forms: Of `cases.FORMS`.
        sides: Of `cases.SIDES`; the baseline's is always there.
        device: A CPU or a CUDA GPU.
        rounds: Timed rounds; None for agreement and memory alone.
        warmup: Rounds before them.
        say: Gets a line per variant.

    Returns:
        The rows of each form, as soon as they are known.

    Raises:
        ValueError: If a name is unknown, there are too few rounds, or float16 or a CUDA graph is asked of a CPU.
    """
    if rounds is not None:
        require_rounds(rounds, warmup)
    require_dtype(case.dtype, device)
    require_forms(forms, device)
    return _measure(case, variants(case, forms=forms, sides=sides), device, rounds, warmup, say)


def _measure(
    case: Case, chosen: Sequence[Variant], device: torch.device, rounds: int | None, warmup: int, say: Say
) -> Iterator[list[Row]]:
    torch.compiler.reset()
    # the nets share timm's forward, of which only 8 compiled versions are kept otherwise; and cuDNN keeps what it takes
    # for the first step
    with cudnn_chooses(), torch._dynamo.config.patch(cache_size_limit=4 * len(chosen)):
        references: dict[str, _Reference] = {}
        rows: dict[Variant, Row] = {}
        steps: dict[Variant, Any] = {}
        for form in dict.fromkeys(variant.form for variant in chosen):
            members = [variant for variant in chosen if variant.form == form]
            for variant in members:
                say(f'{case}: {variant}')
                row = rows[variant] = _row(case, variant, baseline(variant, chosen), device)
                with _failures([row], say):
                    side = variant.side if variant.side == 'plain' else chosen[0].side
                    if side not in references:
                        references[side] = _Reference(side, case, device)
                    step = _checked_step(variant, case, references[side], row)
                    if row.status == 'agrees':
                        _weigh(row, variant, step, case, device)
                        steps[variant] = step
            if chosen[0] in members and chosen[0] in steps:
                rows[FLOOR] = _row(case, FLOOR, None, device)
                with _failures([rows[FLOOR]], say):
                    steps[FLOOR] = _floor(steps[chosen[0]])
                members.append(FLOOR)
            for variant in members:
                reference = baseline(variant, chosen)
                own, theirs = (rows[v].saved_bytes_per_image if v in rows else None for v in (variant, reference))
                rows[variant].saved_ratio = own / theirs if own and theirs else None
            if rounds is not None:
                against = [baseline(variant, chosen) for variant in members]
                timed = {variant: step for variant, step in steps.items() if variant in (*members, *against, FLOOR)}
                with _failures([rows[variant] for variant in members if variant in timed], say):
                    times, repeats = (
                        interleave(timed, rounds=rounds, warmup=warmup, device=device) if timed else ({}, 0)
                    )
                    for variant in (variant for variant in members if variant in times):
                        row = rows[variant]
                        row.rounds, row.warmup, row.repeats = rounds, warmup, repeats
                        _enter_times(row, variant, times, baseline(variant, chosen))
                        spread = max(times[variant]) / min(times[variant])
                        if spread > DISTURBED:
                            say(f'{case}: {variant} took up to {spread:.1f} times its least: is the machine busy?')
            yield [rows[variant] for variant in members]
            needed = [FLOOR, *(baseline(variant, chosen) for variant in chosen if variant not in rows)]
            steps = {variant: step for variant, step in steps.items() if variant in needed}


@contextmanager
def _failures(rows: Sequence[Row], say: Say) -> Iterator[None]:
    """Enter an error as the rows' status: whatever fails, the other variants are measured."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), '')
        for row in rows:
            row.status = 'fails'
            say(f'{row.arch} {row.side} {row.form} {row.task} fails: {type(error).__name__}: {line}')


def _floor(step: Step) -> Timed:
    return floor_step(record(step.module, step.loss if isinstance(step, Training) else step))


def _inputs(case: Case, classes: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Input sets and labels, the same in every case of a shape."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 3, case.size, case.size)
    pictures = [torch.randn(shape, generator=generator).to(device) for _ in range(INPUT_SETS)]
    return pictures, torch.randint(classes, (case.batch,), generator=generator).to(device)


class _Reference:
    """Weights and inputs of a case, and what an eager model computes with them in float32 in contiguous format."""

    def __init__(self, side: str, case: Case, device: torch.device) -> None:
        count, size = _CALIBRATION
        calibration = torch.randn(count, 3, *[min(size, case.size)] * 2, generator=torch.Generator().manual_seed(1))
        filled = fill(build(side, case.arch, branches=case.branches), calibration)
        self.weights = {name: tensor.clone() for name, tensor in filled.state_dict().items()}
        self.case = case
        self.eager = Variant(side, 'eager')
        classes = getattr(filled, 'num_classes')  # noqa: B009  (mypy takes it for a Module)
        self.pictures, self.labels = _inputs(case, classes, device)
        self._models: dict[str, nn.Module] = {}
        self._observed: dict[int, tuple[dict[str, Tensor], dict[str, float] | None]] = {}

    def prepare(self, variant: Variant, case: Case, first: int | None = None) -> Step:
        """The step of a variant with these weights, on the first pictures, or on all."""
        if variant.side not in self._models:
            self._models[variant.side] = loaded(variant.side, case, self.weights)
        pictures = [picture[:first] for picture in self.pictures]
        return prepare(variant, case, self._models[variant.side], pictures, self.labels[:first])

    def exact(self, variant: Variant, first: int, *, memory_format: str | None = None) -> dict[str, Tensor]:
        """What a variant computes in float32 from the first pictures."""
        case = replace(self.case, dtype='float32', batch=first, memory_format=memory_format or self.case.memory_format)
        with cudnn_chooses(False):  # which would take longer than the one step
            return observe(self.prepare(variant, case, first))

    def observed(self, first: int) -> tuple[dict[str, Tensor], dict[str, float] | None]:
        """The reference of the first pictures, and in a lower precision the baseline's own distance from it."""
        if first not in self._observed:
            expected = self.exact(self.eager, first, memory_format='contiguous')
            low = self.case.dtype != 'float32'
            own = differences(observe(self.prepare(self.eager, self.case, first)), expected) if low else None
            self._observed[first] = expected, own
        return self._observed[first]


def _checked_step(variant: Variant, case: Case, reference: _Reference, row: Row) -> Step:
    """The step of a variant; whether it agrees is entered in the row."""
    dtype = DTYPES[case.dtype]
    # what is compiled for the batch trains on all of it; an output of inference does not depend on other pictures
    first = case.batch if case.task == 'training' and variant.form not in ('eager', 'merged') else CHECKED
    first = min(first, case.batch)
    expected, own = reference.observed(first)
    checked = step = reference.prepare(variant, case)
    if variant.form.endswith(GRAPH) and dtype is torch.float32:  # TF32 is captured, or it is not
        with exact_float32():
            checked = reference.prepare(variant, case)
    found = differences(observe(checked, first), expected)
    verdict = judge(found, dtype=dtype, baseline=None if variant == reference.eager else own)
    if verdict.holds and dtype is not torch.float32 and variant.form in ('eager', 'reparameterized', 'merged'):
        exact = judge(differences(reference.exact(variant, first), expected), dtype=torch.float32)
        verdict = verdict if exact.holds else exact
    row.compared, row.difference, row.bound = verdict.compared, verdict.difference, verdict.bound
    row.status = 'agrees' if verdict.holds else 'disagrees'
    return step


def _row(case: Case, variant: Variant, reference: Variant | None, device: torch.device) -> Row:
    return Row(
        arch=case.arch,
        branches=case.branches,
        scaling=case.scaling,
        side=variant.side,
        form=variant.form,
        dtype=case.dtype,
        memory_format=case.memory_format,
        task=case.task,
        batch=case.batch,
        size=case.size,
        baseline=str(reference or ''),
        status='' if variant == FLOOR else 'agrees',
        **describe(device),  # type: ignore[arg-type]
    )


def _weigh(row: Row, variant: Variant, step: Step, case: Case, device: torch.device) -> None:
    """Enter the peak of a step and what it saves; run it once before, for what is made on first use."""
    if variant.form.endswith(GRAPH):  # holds its memory from the capture on
        return
    step(0)
    if isinstance(step, Training):
        step.optimizer.zero_grad()
    row.peak_bytes = peak_bytes(step, device=device)
    if isinstance(step, Training):
        left_out = [*step.module.parameters(), *step.module.buffers()]
        row.saved_bytes_per_image = round(saved_bytes(step.loss, left_out=left_out) / case.batch)


def _enter_times(row: Row, variant: Variant, times: Mapping[Variant, list[float]], reference: Variant | None) -> None:
    """Enter the times of one variant, the ratio to its baseline, and the floor's share."""
    row.min_ms, row.median_ms, row.max_ms = summarise(times[variant])
    row.images_per_s = 1e3 * row.batch / row.median_ms
    if reference is not None and reference in times:
        row.ratio_min, row.ratio_median, row.ratio_max = summarise(ratios(times[variant], times[reference]))
    if FLOOR in times and variant.side in ('ours', 'timm'):
        _, row.of_floor_median, _ = summarise(ratios(times[variant], times[FLOOR]))
