"""The bandwidth that the stages of an SK unit reach, as shares of that of a copy."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stages import Place, Results, Stage, convolutions, operations, unit_stages

from timm_sk.bench.agreement import exact_float32
from timm_sk.bench.machine import describe, require_supported
from timm_sk.bench.matrix import DTYPES, MEMORY_FORMATS
from timm_sk.bench.results import Measurement
from timm_sk.inference.timing import WARMUP_ROUNDS, Timed, interleave, ratios, summarize
from timm_sk.inference.warmup import cudnn_benchmark

_logger = logging.getLogger(__name__)

BOUND = 1e-4  # of the largest value in float32
# C_in, C_out, H = W, groups, kernel size: of sknet50 at 224 pixels, and of skresnet34
CONVOLUTIONS = (
    (256, 128, 56, 1, 1),
    (128, 256, 56, 1, 1),
    (512, 1024, 14, 1, 1),
    (64, 64, 56, 1, 3),
    (128, 128, 56, 32, 3),
    (512, 512, 14, 32, 3),
)
SIZES = ('batch', 'channels', 'height', 'width')
ROUNDING_STEPS = 8  # of the dtype, below float32: a unit rounds its branches, its logits and its output


@dataclass(kw_only=True)
class StageRow(Measurement):
    """One stage in one implementation; columns are described in docs/bench.md."""

    stage: str
    implementation: str = ''
    dtype: str
    memory_format: str
    batch: int
    channels: int
    height: int
    width: int
    branches: int
    groups: int | None = None
    least_bytes: int
    status: str = ''
    difference: float | None = None
    bound: float | None = None
    rounds: int | None = None
    warmup: int | None = None
    repeats: int | None = None
    min_ms: float | None = None
    median_ms: float | None = None
    max_ms: float | None = None
    least_ms: float | None = None
    gb_per_s: float | None = None
    of_copy_min: float | None = None
    of_copy_median: float | None = None
    of_copy_max: float | None = None


def measure_stages(
    shape: Sequence[int],
    *,
    branches: int,
    groups: int,
    dtype: str,
    memory_format: str,
    device: torch.device,
    rounds: int | None = 7,
) -> Iterator[list[StageRow]]:
    """Measure fuse, select and its backward pass beside the reference's, and one deployed unit stage by stage.

    The shape is B, C, H, W of a branch; dtype and memory format are keys of `DTYPES` and `MEMORY_FORMATS`. What
    disagrees with the reference is not timed, and without `rounds` nothing is.

    Raises:
        ValueError: If there are too few rounds, or float16 is asked of a CPU.
    """
    require_supported(device, dtype=dtype)
    place = Place(DTYPES[dtype], MEMORY_FORMATS[memory_format], device)
    common: dict[str, Any] = dict(zip(SIZES, shape, strict=True))
    common |= dict(dtype=dtype, memory_format=memory_format, branches=branches, **describe(device))
    with cudnn_benchmark():
        copy, *selection = operations(shape, place, branches=branches)
        yield _measure([copy, *selection], common, device, rounds)
        del selection  # and the memory of its maps
        unit = unit_stages(shape, place, branches=branches, groups=groups)
        yield _measure([copy, *unit], common | dict(groups=groups), device, rounds)


def measure_convolutions(
    batch: int,
    *,
    size: int = 56,
    dtype: str,
    memory_format: str,
    device: torch.device,
    rounds: int | None = 7,
) -> Iterator[list[StageRow]]:
    """Measure convolutions of `CONVOLUTIONS` with what follows them: bias, ReLU and shortcut.

    Maps are at most `size` high and wide; the other arguments are those of `measure_stages`.
    """
    require_supported(device, dtype=dtype)
    place = Place(DTYPES[dtype], MEMORY_FORMATS[memory_format], device)
    for channels, out_channels, width, groups, kernel_size in CONVOLUTIONS:
        width = min(size, width)
        shape = (batch, channels, width, width)
        common: dict[str, Any] = dict(zip(SIZES, shape, strict=True))
        common |= dict(dtype=dtype, memory_format=memory_format, branches=1, groups=groups, **describe(device))
        with cudnn_benchmark():
            stages = convolutions(shape, place, out_channels=out_channels, kernel_size=kernel_size, groups=groups)
            yield _measure(stages, common, device, rounds)


def _measure(
    stages: Sequence[Stage], common: Mapping[str, Any], device: torch.device, rounds: int | None
) -> list[StageRow]:
    """Rows of stages that are timed interleaved; the first is the copy."""
    rows: list[StageRow] = []
    steps: dict[int, Timed] = {}  # by the row's place
    for stage in stages:
        for implementation, step in (('', stage.step), ('reference', stage.reference)):
            if step is None:
                continue
            row = StageRow(stage=stage.name, least_bytes=stage.least_bytes, **common)
            row.implementation = implementation or stage.implementation
            try:
                with exact_float32():
                    found = step(0)
                if stage.expected is not None:
                    with exact_float32(), cudnn_benchmark(False):
                        row.difference, row.bound = difference(found, stage.expected()), bound_of(common['dtype'])
                    row.status = 'agrees' if row.difference <= row.bound else 'disagrees'
            except RuntimeError as error:  # out of memory, or an operator that this device or cuDNN does not have
                row.status = 'fails'
                _logger.warning('%s by %s fails: %s', row.stage, row.implementation, str(error).partition('\n')[0])
            if row.status in ('', 'agrees'):
                steps[len(rows)] = step
            rows.append(row)
    if rounds is None:
        return rows
    times, repeats = interleave(steps, rounds=rounds, device=device)
    for place, own in times.items():
        row = rows[place]
        row.rounds, row.warmup, row.repeats = rounds, WARMUP_ROUNDS, repeats
        _enter_times(row, own, copy=times[0], copy_bytes=rows[0].least_bytes)
    return rows


def _enter_times(row: StageRow, own: Sequence[float], *, copy: Sequence[float], copy_bytes: int) -> None:
    """Enter times and shares of the copy's bandwidth, by round."""
    row.min_ms, row.median_ms, row.max_ms = summarize(own)
    row.gb_per_s = row.least_bytes / row.median_ms / 1e6
    shares = [ratio * row.least_bytes / copy_bytes for ratio in ratios(own, copy)]
    row.of_copy_min, row.of_copy_median, row.of_copy_max = summarize(shares)
    row.least_ms = row.least_bytes / copy_bytes * summarize(copy)[1]


def difference(found: Results, expected: Results) -> float:
    """The largest deviation of any result, relative to the largest value of that result."""
    deviations = [
        (own.float() - exact).abs().max() / exact.abs().max() for own, exact in zip(found, expected, strict=True)
    ]
    return float(torch.stack(deviations).max())  # NaN, if any is


def bound_of(dtype: str) -> float:
    """The largest difference allowed from the reference in float32."""
    return BOUND if dtype == 'float32' else ROUNDING_STEPS * torch.finfo(DTYPES[dtype]).eps
