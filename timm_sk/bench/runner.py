"""Measures one case: outputs are compared, then memory and time are measured, form by form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..inference.timing import WARMUP_ROUNDS, Timed, interleave, ratios, require_rounds, summarize
from ..inference.warmup import cudnn_benchmark
from .agreement import compare, differences, exact_float32
from .conv_replay import record_convs
from .counterparts import build
from .forms import prepare
from .machine import describe, require_supported
from .matrix import CONVOLUTIONS, DTYPES, GRAPH, Case, Variant, baseline, variants
from .memory import peak_bytes, saved_bytes
from .random_weights import fill
from .results import Row
from .steps import Step, Training

BATCHES = 3
COMPARED_IMAGES = 8
MAX_SPREAD = 1.5  # slowest round over fastest; beyond it something else may have run
_CALIBRATION = (8, 128)  # images and their largest size, for the running statistics

Log = Callable[[str], None]


def measure(
    case: Case,
    *,
    forms: Sequence[str],
    sides: Sequence[str],
    device: torch.device,
    rounds: int | None = 7,
    log: Log = lambda line: None,
) -> Iterator[list[Row]]:
    """Measure the variants of a case, form by form; only those whose outputs match the reference are timed.

    Args:
        case: Setting.
        forms: Some of `matrix.FORMS`.
        sides: Some of `matrix.SIDES`; the baseline's is always included.
        device: A CPU or a CUDA GPU.
        rounds: Timed rounds; None to compare and measure memory only.
        log: Called with a line for each variant.

    Yields:
        The rows of each form, as soon as they are known.

    Raises:
        ValueError: If a name is unknown, there are too few rounds, or float16 or a CUDA graph is asked of a CPU.
    """
    if rounds is not None:
        require_rounds(rounds)
    require_supported(device, dtype=case.dtype, forms=forms)
    chosen = variants(case, forms=forms, sides=sides)
    torch.compiler.reset()
    rows: dict[Variant, Row] = {}
    steps: dict[Variant, Any] = {}
    references: dict[str, _Reference] = {}

    def prepare_step(variant: Variant) -> None:
        """Compare and weigh a variant, and keep its step if it matches."""
        side = variant.side if variant.side == 'plain' else chosen[0].side
        if side not in references:
            references[side] = _Reference(side, case, device)
        step = _compared_step(variant, case, references[side], rows[variant])
        if rows[variant].status == 'agrees':
            _measure_memory(rows[variant], variant, step, device)
            steps[variant] = step

    # the models share timm's forward, of which Dynamo keeps only 8 versions by default; cuDNN keeps its first choice
    with cudnn_benchmark(), torch._dynamo.config.patch(cache_size_limit=4 * len(chosen)):
        for form in dict.fromkeys(variant.form for variant in chosen):
            members = [variant for variant in chosen if variant.form == form]
            for variant in members:
                log(f'{case}: {variant}')
                rows[variant] = _row(case, variant, baseline(variant, chosen), device)
                with _failures([rows[variant]], log):
                    prepare_step(variant)
            if chosen[0] in members and chosen[0] in steps:
                rows[CONVOLUTIONS] = _row(case, CONVOLUTIONS, None, device)
                with _failures([rows[CONVOLUTIONS]], log):
                    steps[CONVOLUTIONS] = _convolutions(steps[chosen[0]])
                members.append(CONVOLUTIONS)
            baselines = {variant: baseline(variant, chosen) for variant in members}
            for variant, reference in baselines.items():
                own, theirs = (rows[v].saved_bytes_per_image if v in rows else None for v in (variant, reference))
                rows[variant].saved_ratio = own / theirs if own and theirs else None
            if rounds is not None:
                wanted = {*members, *baselines.values(), CONVOLUTIONS}
                timed = {variant: step for variant, step in steps.items() if variant in wanted}
                with _failures([rows[variant] for variant in members if variant in timed], log):
                    times, repeats = interleave(timed, rounds=rounds, device=device) if timed else ({}, 0)
                    for variant in (variant for variant in members if variant in times):
                        row = rows[variant]
                        row.rounds, row.warmup, row.repeats = rounds, WARMUP_ROUNDS, repeats
                        _enter_times(row, variant, times, baselines[variant])
                        spread = max(times[variant]) / min(times[variant])
                        if spread > MAX_SPREAD:
                            log(f'{case}: {variant}: slowest round {spread:.1f} times the fastest: busy machine?')
            yield [rows[variant] for variant in members]
            needed = [CONVOLUTIONS, *(baseline(variant, chosen) for variant in chosen if variant not in rows)]
            steps = {variant: step for variant, step in steps.items() if variant in needed}


@contextmanager
def _failures(rows: Sequence[Row], log: Log) -> Iterator[None]:
    """Enter an error as the status of rows, so that the other variants are still measured."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), '')
        for row in rows:
            row.status = 'fails'
            log(f'{row.arch} {row.side} {row.form} {row.task} fails: {type(error).__name__}: {line}')


def _convolutions(step: Step) -> Timed:
    replays = record_convs(step.module, step.loss if isinstance(step, Training) else step)

    def run(index: int) -> None:
        for replay in replays:
            replay()

    return run


class _Reference:
    """Weights and inputs of a case, and what the eager model computes with them in float32 in contiguous format."""

    def __init__(self, side: str, case: Case, device: torch.device) -> None:
        count, size = _CALIBRATION
        calibration = torch.randn(count, 3, *[min(size, case.size)] * 2, generator=torch.Generator().manual_seed(1))
        filled: Any = fill(build(side, case.arch, branches=case.branches), calibration)
        self.weights = {name: tensor.clone() for name, tensor in filled.state_dict().items()}
        self.case = case
        self.eager = Variant(side, 'eager')
        generator = torch.Generator().manual_seed(0)  # the same inputs in every case of a shape
        shape = (case.batch, 3, case.size, case.size)
        self.images = [torch.randn(shape, generator=generator).to(device) for _ in range(BATCHES)]
        self.labels = torch.randint(filled.num_classes, (case.batch,), generator=generator).to(device)
        self._observed: dict[int, tuple[dict[str, Tensor], dict[str, float] | None]] = {}

    def prepare(self, variant: Variant, case: Case, first: int | None = None) -> Step:
        """The step of a variant with these weights, on the first images, or on all."""
        return prepare(variant, case, self.weights, [x[:first] for x in self.images], self.labels[:first])

    def exact(self, variant: Variant, first: int, *, memory_format: str | None = None) -> dict[str, Tensor]:
        """What a variant computes in float32 from the first images."""
        case = replace(self.case, dtype='float32', batch=first, memory_format=memory_format or self.case.memory_format)
        with cudnn_benchmark(False):  # measuring would take longer than the one step
            return self.prepare(variant, case, first).observe()

    def observed(self, first: int) -> tuple[dict[str, Tensor], dict[str, float] | None]:
        """The reference of the first images, and in a lower precision the baseline's own differences from it."""
        if first not in self._observed:
            expected = self.exact(self.eager, first, memory_format='contiguous')
            low = self.case.dtype != 'float32'
            own = differences(self.prepare(self.eager, self.case, first).observe(), expected) if low else None
            self._observed[first] = expected, own
        return self._observed[first]


def _compared_step(variant: Variant, case: Case, reference: _Reference, row: Row) -> Step:
    """The step of a variant; the result of its comparison is entered in the row."""
    dtype = DTYPES[case.dtype]
    # compiled training is compiled for the whole batch; an output of inference does not depend on other images
    whole_batch = case.task == 'training' and variant.form not in ('eager', 'merged')
    first = case.batch if whole_batch else min(COMPARED_IMAGES, case.batch)
    expected, own = reference.observed(first)
    compared = step = reference.prepare(variant, case)
    if variant.form.endswith(GRAPH) and dtype is torch.float32:  # a graph captures the setting of TF32
        with exact_float32():
            compared = reference.prepare(variant, case)
    found = differences(compared.observe(first), expected)
    result = compare(found, dtype=dtype, baseline=None if variant == reference.eager else own)
    if result.passes and dtype is not torch.float32 and variant.form in ('eager', 'reparameterized', 'merged'):
        exact = compare(differences(reference.exact(variant, first), expected), dtype=torch.float32)
        result = result if exact.passes else exact
    row.compared, row.difference, row.bound = result.compared, result.difference, result.bound
    row.status = 'agrees' if result.passes else 'disagrees'
    return step


def _row(case: Case, variant: Variant, reference: Variant | None, device: torch.device) -> Row:
    common: dict[str, Any] = vars(case) | vars(variant) | describe(device)
    return Row(baseline=str(reference or ''), **common)


def _measure_memory(row: Row, variant: Variant, step: Step, device: torch.device) -> None:
    """Enter the peak of a step and the bytes that it saves, after a first run."""
    if variant.form.endswith(GRAPH):  # holds its memory from the capture on
        return
    step(0)
    if isinstance(step, Training):
        step.optimizer.zero_grad()
    row.peak_bytes = peak_bytes(step, device=device)
    if isinstance(step, Training):
        excluded = [*step.module.parameters(), *step.module.buffers()]
        row.saved_bytes_per_image = round(saved_bytes(step.loss, excluded=excluded) / row.batch)


def _enter_times(row: Row, variant: Variant, times: Mapping[Variant, list[float]], reference: Variant | None) -> None:
    """Enter the times of a variant, and the ratios to its baseline and to the convolutions alone."""
    row.min_ms, row.median_ms, row.max_ms = summarize(times[variant])
    row.images_per_s = 1e3 * row.batch / row.median_ms
    if reference is not None and reference in times:
        row.ratio_min, row.ratio_median, row.ratio_max = summarize(ratios(times[variant], times[reference]))
    if CONVOLUTIONS in times and variant.side in ('ours', 'timm'):
        _, row.of_convolutions_median, _ = summarize(ratios(times[variant], times[CONVOLUTIONS]))
