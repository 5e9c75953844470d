"""Times of several steps on one device, in turn, round after round, so that a disturbance affects all of them."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

MIN_ROUNDS = 7
WARMUP_ROUNDS = 2

Timed = Callable[[int], object]
Run = Callable[[], object]

Name = TypeVar('Name')


def interleave(
    steps: Mapping[Name, Timed],
    *,
    rounds: int,
    device: torch.device,
    round_seconds: float = 0.05,
    max_repeats: int = 100,
    capture: Callable[[Run], Run] | None = None,
) -> tuple[dict[Name, list[float]], int]:
    """Time steps in turn: A B C, A B C, and so on, after `WARMUP_ROUNDS` rounds that do not count.

    Args:
        steps: Steps by name, called with a running number, by which they choose their input.
        rounds: Number of rounds.
        device: Device of the steps; on CUDA they are timed by events on its stream.
        round_seconds: Seconds in a round, for which shorter steps are repeated.
        max_repeats: Upper limit of the repeats.
        capture: Captures the repeats of a round in a CUDA graph, and returns its replay, which is timed instead.

    Returns:
        Milliseconds per step, a list of `rounds` for each name, and the number of repeats.

    Raises:
        ValueError: If there are fewer than `MIN_ROUNDS` rounds.
    """
    require_rounds(rounds)
    fastest = math.inf
    for index in range(WARMUP_ROUNDS):
        fastest = min(_milliseconds(_repeated(step, index, 1), device) for step in steps.values())
    repeats = min(max_repeats, max(1, math.ceil(1e3 * round_seconds / max(fastest, 1e-6))))
    replays = {name: capture(_repeated(step, 0, repeats)) for name, step in steps.items()} if capture else {}
    for replay in replays.values():
        replay()  # the first one uploads the graph
    times: dict[Name, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()  # a collection would disturb one of the steps
    try:
        for index in range(rounds):
            for name, step in steps.items():
                run = replays.get(name) or _repeated(step, index, repeats)
                times[name].append(_milliseconds(run, device) / repeats)
    finally:
        gc.enable()
    return times, repeats


def require_rounds(rounds: int) -> None:
    """Raise ValueError if there are too few rounds for a median."""
    if rounds < MIN_ROUNDS:
        raise ValueError(f'Too few rounds: {rounds}. Pass at least {MIN_ROUNDS}, or --smoke, which times nothing.')


def _repeated(step: Timed, index: int, repeats: int) -> Run:
    def run() -> None:
        for repeat in range(repeats):
            step(index + repeat)

    return run


def _milliseconds(run: Run, device: torch.device) -> float:
    if device.type == 'cuda':
        with torch.cuda.device(device):  # whose stream the events are recorded on
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end)
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def ratios(own: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """The baseline's time over one's own, round by round: above 1 is faster."""
    return [theirs / ours for ours, theirs in zip(own, baseline, strict=True)]


def summarize(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)
