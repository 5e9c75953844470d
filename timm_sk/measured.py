"""Which of several ways to compute the same is fastest: measured on the device in turns, and remembered in a file.

The files are in the folder of the local store; deleting one is safe. Each choice stands under a line of text with
everything that it depends on.
"""

import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from .errors import UnwritableStoreError
from .pretrained import store_root

ROUNDS = 7
MARGIN = 0.05  # below that, a difference may be noise, and other ways take memory
_SAMPLE_SECONDS = 1e-3

Way = TypeVar('Way', int, str)


def choose(times: Mapping[Way, Sequence[float]], usual: Way, *, margin: float = MARGIN) -> Way:
    """Choose a way from measured times: the fastest by its median, if it wins by the margin.

    Args:
        times: For each way, times of any unit; all ways were measured equally often.
        usual: The way without a choice, which is among them.
        margin: Share of the usual time that another way must save.
    """
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    fastest = min(medians, key=lambda way: medians[way])
    return fastest if medians[fastest] < (1 - margin) * medians[usual] else usual


def measure(
    runs: Mapping[Way, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Way, list[float]]:
    """Time every run once per round, one after the other, so that what slows the machine down slows all of them.

    Args:
        runs: What to run, by way. A first run of each is not counted.
        rounds: Samples of each; a sample repeats a short run.
        synchronize: Waits until the device is idle.
        clock: Seconds.

    Returns:
        Seconds of one run, for each run and round.
    """

    def sample(run: Callable[[], object], repeats: int) -> float:
        begin = clock()
        for _ in range(repeats):
            run()
        if synchronize is not None:
            synchronize()
        return (clock() - begin) / repeats

    repeats = {}
    for way, run in runs.items():
        sample(run, 1)
        seconds = max(sample(run, 1), 1e-7)
        repeats[way] = min(math.ceil(_SAMPLE_SECONDS / seconds), 100)
    times: dict[Way, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            times[way].append(sample(run, repeats[way]))
    return times


def synchronizer(device: torch.device) -> Callable[[], object] | None:
    """What waits for a device, for `measure`."""
    return partial(torch.cuda.synchronize, device) if device.type == 'cuda' else None


def setting(weight: torch.Tensor, *, channels_last: bool) -> list[str]:
    """What times depend on beside shapes: device, torch version, threads, data type of a weight, memory format."""
    return [
        device_name(weight.device),
        f'torch {torch.__version__}',
        f'{torch.get_num_threads()} threads' if weight.device.type == 'cpu' else '',
        str(weight.dtype).removeprefix('torch.'),
        'channels last' if channels_last else 'contiguous',
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
    """The CPU's model name and its instruction sets, of which there are none where the system does not list them."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in reversed(lines))}
    name = facts.get('model name') or platform.processor() or platform.machine()
    return name, (facts.get('flags') or facts.get('Features') or '').split()


def read_choices(file_name: str, kind: type[Way]) -> dict[str, Way]:
    """The choices of a type that a file remembers; none where it is missing, damaged or not readable."""
    try:
        content = json.loads((store_root() / file_name).read_text())
    except (OSError, ValueError):  # among them UnwritableStoreError
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: way for key, way in content.items() if type(way) is kind}


def write_choices(file_name: str, found: Mapping[str, Way], kind: type[Way]) -> None:
    """Add choices to a file, which is replaced as a whole; without a place to write, they are measured again."""
    try:
        folder = store_root()
        folder.mkdir(parents=True, exist_ok=True)
        merged = read_choices(file_name, kind) | dict(found)
        descriptor, partly_written = tempfile.mkstemp(prefix=f'{file_name}.', dir=folder)
        try:
            with os.fdopen(descriptor, 'w') as file:
                json.dump(merged, file, indent=2, sort_keys=True)
            Path(partly_written).replace(folder / file_name)
        finally:
            Path(partly_written).unlink(missing_ok=True)
    except (OSError, UnwritableStoreError):
        return
