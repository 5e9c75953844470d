"""Autotuning: candidates that compute the same are timed on the device, and the fastest is remembered in a file.

Results are in `autotune.json` in the folder of the local store, each by a line of text with everything that it depends
on. Deleting the file is safe.
"""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from ..atomic_io import read_json, write_json
from ..errors import UnwritableStoreError
from ..pretrained import store_root
from .conv_inputs import memory_format_of
from .cuda_graph import record
from .timing import MIN_ROUNDS, Run, Timed, interleave

MARGIN = 0.05  # a smaller difference may be noise, and other candidates than the default take memory
FILE_NAME = 'autotune.json'
FORMAT_VERSION = 1  # of that file; one of another version is ignored, and replaced

Candidate = TypeVar('Candidate', int, str)


def pick_fastest(times: Mapping[Candidate, Sequence[float]], default: Candidate) -> Candidate:
    """The candidate of the lowest median time; the default one unless another saves at least `MARGIN` of its time."""
    medians = {candidate: statistics.median(taken) for candidate, taken in times.items()}
    fastest = min(medians, key=lambda candidate: medians[candidate])
    return fastest if medians[fastest] < (1 - MARGIN) * medians[default] else default


def measure(runs: Mapping[Candidate, Callable[[], object]], device: torch.device) -> dict[Candidate, list[float]]:
    """Milliseconds of one run, for each candidate and round; the candidates take turns.

    On CUDA each run is captured several times over in a CUDA graph, whose replays are timed: launched one by one, short
    runs take the time of their launches, and all candidates would seem equal.
    """
    capture = partial(_graph, device=device) if device.type == 'cuda' else None
    steps = {candidate: _without_index(run) for candidate, run in runs.items()}
    times, _ = interleave(steps, rounds=MIN_ROUNDS, device=device, round_seconds=1e-3, max_repeats=20, capture=capture)
    return times


def _without_index(run: Callable[[], object]) -> Timed:
    return lambda index: run()


def _graph(run: Run, device: torch.device) -> Run:
    return record(lambda _: run(), torch.empty(0, device=device)).replay


class AutotuneCache:
    """The fastest candidates measured so far; with `remember` also those in the file, to which new ones are added."""

    def __init__(self, *, remember: bool) -> None:
        self._remember = remember
        self._known = _read() if remember else {}
        self._measured: dict[str, int | str] = {}

    def fastest(self, key: str, candidates: Sequence[Candidate], find_fastest: Callable[[], Candidate]) -> Candidate:
        """The fastest candidate, which is measured if it is not known by the key; others in the file are ignored."""
        known = self._measured.get(key, self._known.get(key))
        for candidate in candidates:
            if candidate == known:
                return candidate
        found = self._measured[key] = find_fastest()
        return found

    def save(self) -> None:
        """Add new results to the file; if it cannot be written, they will be measured again."""
        if not (self._remember and self._measured):
            return
        try:
            folder = store_root()
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FILE_NAME, _read() | self._measured, version=FORMAT_VERSION)
        except (OSError, UnwritableStoreError):
            return


def _read() -> dict[str, int | str]:
    """Earlier results; none if the file is missing, damaged, unreadable or of another format version."""
    try:
        content = read_json(store_root() / FILE_NAME, version=FORMAT_VERSION)
    except (OSError, ValueError):  # UnwritableStoreError among them
        return {}
    return {key: candidate for key, candidate in content.items() if type(candidate) in (int, str)}


def setting(weight: torch.Tensor, x: torch.Tensor) -> list[str]:
    """What times depend on besides shapes: device, torch version, threads, how they are measured, dtype and format."""
    return [
        device_name(weight.device),
        f'torch {torch.__version__}',
        f'{torch.get_num_threads()} threads' if weight.device.type == 'cpu' else '',
        'in a CUDA graph' if weight.device.type == 'cuda' else '',
        str(weight.dtype).removeprefix('torch.'),
        'channels last' if memory_format_of(x) is torch.channels_last else 'contiguous',
    ]


@lru_cache(maxsize=8)
def device_name(device: torch.device) -> str:
    """A processor's name with its vector and matrix instructions, or a GPU's."""
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}'
    if device.type != 'cpu':
        return device.type
    name, flags = processor()
    if not flags:
        return f'{name}, {torch.backends.cpu.get_cpu_capability()}'
    return ' '.join([name, *sorted(flag for flag in flags if flag.startswith(('avx', 'amx', 'asimd', 'sve')))])


def processor() -> tuple[str, list[str]]:
    """The CPU's model name and its instruction sets; the latter are empty if the system does not list them."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in reversed(lines))}
    name = fields.get('model name') or platform.processor() or platform.machine()
    return name, (fields.get('flags') or fields.get('Features') or '').split()
