"""Times of several steps on one device: in turn, round after round, so that a disturbance affects all of them."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

MIN_ROUNDS = 7
MIN_WARMUP = 2
ROUND_SECONDS = 0.05  # steps that are shorter are repeated within a round
MAX_REPEATS = 100

Timed = Callable[[int], object]
Run = Callable[[], object]

Name = TypeVar('Name')


def interleave(
    steps: Mapping[Name, Timed],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    round_seconds: float | None = None,
    max_repeats: int = MAX_REPEATS,
    capture: Callable[[Run], Run] | None = None,
) -> tuple[dict[Name, list[float]], int]:
    """Time steps in turn: A B C, A B C, and so on.

    Args:
        steps: By name; called with a running number, by which they choose their input set.
        rounds: How many times each is timed.
        warmup: Rounds before, whose times are dropped.
        device: 'cuda' is timed by events on its stream, everything else by the clock.
        round_seconds: Steps shorter than this are repeated within a round; None for `ROUND_SECONDS`.
        max_repeats: Upper limit of those repeats.
        capture: Makes of a round's repeats a CUDA graph, and returns its replay, which is timed instead.

    Returns:
        Milliseconds per step, a list of `rounds` for each name, and how many steps of each a round took.

    Raises:
        ValueError: If there are fewer than `MIN_ROUNDS` rounds or `MIN_WARMUP` rounds of warm-up.
    """
    require_rounds(rounds, warmup)
    fastest = math.inf
    for index in range(warmup):
        fastest = min(_milliseconds(_repeated(step, index, 1), device) for step in steps.values())
    seconds = ROUND_SECONDS if round_seconds is None else round_seconds
    repeats = min(max_repeats, max(1, math.ceil(1e3 * seconds / max(fastest, 1e-6))))
    replays = {name: capture(_repeated(step, 0, repeats)) for name, step in steps.items()} if capture else {}
    for replay in replays.values():
        replay()  # the first one uploads the graph
    times: dict[Name, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()  # or a collection falls into someone's round
    try:
        for index in range(rounds):
            for name, step in steps.items():
                run = replays.get(name) or _repeated(step, index, repeats)
                times[name].append(_milliseconds(run, device) / repeats)
    finally:
        gc.enable()
    return times, repeats


def require_rounds(rounds: int, warmup: int = MIN_WARMUP) -> None:
    """Check that the rounds suffice for a median.

    Raises:
        ValueError: If there are too few.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(
            f'A median takes at least {MIN_ROUNDS} rounds, got {rounds}: pass more, or --smoke, which times nothing.'
        )
    if warmup < MIN_WARMUP:
        raise ValueError(f'At least {MIN_WARMUP} rounds of warm-up are needed, got {warmup}.')


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
    """The baseline's time over one's own, round by round: above 1 is faster.

    Raises:
        ValueError: If the rounds are not the same ones.
    """
    if len(own) != len(baseline):
        raise ValueError(f'Ratios are of the same rounds, got {len(own)} and {len(baseline)}.')
    return [theirs / ours for ours, theirs in zip(own, baseline, strict=True)]


def summarise(values: Sequence[float]) -> tuple[float, float, float]:
    """Least, median and greatest."""
    return min(values), statistics.median(values), max(values)
