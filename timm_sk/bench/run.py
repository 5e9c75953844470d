"""One case from weights to rows: agree, weigh, time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..timing import MIN_WARMUP, Timed, interleave, ratios, require_rounds, summarise
from ..warm_up import cudnn_chooses
from .agreement import Agreement, differences, exact_float32, judge, observe
from .cases import DTYPES, FLOOR, Case, Variant, baseline, variants
from .counterparts import build
from .floor import floor_step, record
from .forms import loaded, prepare
from .machine import describe, require_dtype, require_forms
from .memory import peak_bytes, saved_bytes
from .random_weights import fill
from .report import Row
from .steps import Step, Training

INPUT_SETS = 3
DISTURBED = 1.5
_CALIBRATION = (8, 128)  # pictures, and their size at most: enough for the running statistics

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
) -> list[Row]:
    """Measure the variants of a case; those that disagree with their reference get no speed.

    Args:
        case: The setting.
        forms: Of `cases.FORMS`.
        sides: Of `cases.SIDES`; the baseline's is always there.
        device: A CPU or a CUDA GPU.
        rounds: Timed rounds; None for agreement and memory alone.
        warmup: Rounds before them.
        say: Gets a line per stage.

    Raises:
        ValueError: If a name is unknown, there are too few rounds, or float16 or a CUDA graph is asked of a CPU.
    """
    if rounds is not None:
        require_rounds(rounds, warmup)
    require_dtype(case.dtype, device)
    require_forms(forms, device)
    chosen = variants(case, forms=forms, sides=sides)
    torch.compiler.reset()
    # the nets share timm's forward, of which only 8 compiled versions are kept otherwise; and cuDNN keeps what it takes
    # for the first step
    with cudnn_chooses(), torch._dynamo.config.patch(cache_size_limit=4 * len(chosen)):
        return _measure(case, chosen, device, rounds, warmup, say)


def _measure(
    case: Case, chosen: Sequence[Variant], device: torch.device, rounds: int | None, warmup: int, say: Say
) -> list[Row]:
    say(f'{case}: agreement')
    steps, rows = _checked_steps(case, chosen, device, say)
    say(f'{case}: memory')
    for variant, step in steps.items():
        _weigh(rows[variant], variant, step, case, device)
    for variant, row in rows.items():
        reference = baseline(variant, chosen)
        own, theirs = row.saved_bytes_per_image, rows[reference].saved_bytes_per_image if reference else None
        row.saved_ratio = own / theirs if own and theirs else None
    first = steps.get(chosen[0])
    timed: dict[Variant, Timed] = dict(steps)
    if first is not None:
        timed[FLOOR] = floor_step(record(first.module, first.loss if isinstance(first, Training) else first))
        rows[FLOOR] = replace(_row(case, FLOOR, None, device), status='')
    if rounds is not None and timed:
        say(f'{case}: {rounds} rounds')
        times, repeats = interleave(timed, rounds=rounds, warmup=warmup, device=device)
        for variant in timed:
            row = rows[variant]
            row.rounds, row.warmup, row.repeats = rounds, warmup, repeats
            _enter_times(row, variant, times, baseline(variant, chosen))
            spread = max(times[variant]) / min(times[variant])
            if spread > DISTURBED:
                say(f'{case}: {variant} took up to {spread:.1f} times its least: is the machine busy?')
    return list(rows.values())


def _inputs(case: Case, classes: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Input sets and labels, the same in every case of a shape."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 3, case.size, case.size)
    pictures = [torch.randn(shape, generator=generator).to(device) for _ in range(INPUT_SETS)]
    return pictures, torch.randint(classes, (case.batch,), generator=generator).to(device)


def _checked_steps(
    case: Case, chosen: Sequence[Variant], device: torch.device, say: Say
) -> tuple[dict[Variant, Step], dict[Variant, Row]]:
    """The steps of the variants that agree, and a row for every variant."""
    count, size = _CALIBRATION
    calibration = torch.randn(count, 3, *[min(size, case.size)] * 2, generator=torch.Generator().manual_seed(1))
    dtype = DTYPES[case.dtype]
    plainest = replace(case, memory_format='contiguous', dtype='float32')
    steps: dict[Variant, Step] = {}
    rows: dict[Variant, Row] = {}
    for reference_side in dict.fromkeys('plain' if v.side == 'plain' else chosen[0].side for v in chosen):
        eager = Variant(reference_side, 'eager')
        filled = fill(build(reference_side, case.arch, branches=case.branches), calibration)
        pictures, labels = _inputs(case, getattr(filled, 'num_classes'), device)  # noqa: B009  (mypy takes it for a Module)
        weights = {name: tensor.clone() for name, tensor in filled.state_dict().items()}
        reference = observe(prepare(eager, plainest, filled.eval(), pictures, labels))
        yardstick: dict[str, float] | None = None
        for variant in chosen:
            if (variant.side == 'plain') != (reference_side == 'plain'):
                continue
            row = rows[variant] = _row(case, variant, baseline(variant, chosen), device)
            try:
                model = loaded(variant.side, case, weights)
                checked = step = prepare(variant, case, model, pictures, labels)
                if variant.form == 'graphed' and dtype is torch.float32:  # TF32 is captured, or it is not
                    with exact_float32():
                        checked = prepare(variant, case, model, pictures, labels)
                found = differences(observe(checked), reference)
                own = found if variant == eager else None
                verdicts = [judge(found, dtype=dtype, baseline=yardstick)]
                if dtype is not torch.float32 and variant.form in ('eager', 'reparameterized', 'merged'):
                    exact = prepare(variant, replace(case, dtype='float32'), model, pictures, labels)
                    verdicts.append(judge(differences(observe(exact), reference), dtype=torch.float32))
            except (RuntimeError, ValueError, ImportError) as error:
                row.status = 'fails'
                say(f'{case}: {variant} fails: {error}')
                continue
            yardstick = yardstick or own
            verdict = next((verdict for verdict in verdicts if not verdict.holds), verdicts[0])
            _enter_verdict(row, verdict)
            if verdict.holds:
                steps[variant] = step
    order = [variant for variant in chosen if variant in steps]
    return {variant: steps[variant] for variant in order}, {variant: rows[variant] for variant in chosen}


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
        **describe(device),  # type: ignore[arg-type]
    )


def _enter_verdict(row: Row, verdict: Agreement) -> None:
    row.compared, row.difference, row.bound = verdict.compared, verdict.difference, verdict.bound
    row.status = 'agrees' if verdict.holds else 'disagrees'


def _weigh(row: Row, variant: Variant, step: Step, case: Case, device: torch.device) -> None:
    """Enter the peak of a step and what it saves; run it once before, for what is made on first use."""
    if variant.form == 'graphed':  # holds its memory from the capture on
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
