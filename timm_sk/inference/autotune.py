"""Which of several ways to compute the same is fastest: measured on the device in turns, and remembered in a file.

The files are in the folder of the local store; deleting one is safe. Each choice stands under a line of text with
everything that it depends on.
"""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import UnwritableStoreError
from ..pretrained import store_root
from .cuda_graph import record
from .timing import MIN_ROUNDS, MIN_WARMUP, Run, Timed, interleave

MARGIN = 0.05  # below that, a difference may be noise, and other ways take memory
_ROUND_SECONDS = 1e-3
_MAX_REPEATS = 20

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
    device: torch.device,
    *,
    capture: Callable[[Run], Run] | None = None,
) -> dict[Way, list[float]]:
    """Milliseconds of one run, for each run and round; the runs take turns.

    On CUDA each run is captured several times over in a CUDA graph, whose replays are timed: launched one by one,
    short runs take the time of their launches, and none could win.

    Args:
        runs: What to run, by way.
        device: Where they run.
        capture: Returns what replays a run; None for a CUDA graph on CUDA, and for none elsewhere.
    """
    if capture is None and device.type == 'cuda':
        capture = partial(_graph, device=device)
    steps = {way: _numbered(run) for way, run in runs.items()}
    times, _ = interleave(
        steps,
        rounds=MIN_ROUNDS,
        warmup=MIN_WARMUP,
        device=device,
        round_seconds=_ROUND_SECONDS,
        max_repeats=_MAX_REPEATS,
        capture=capture,
    )
    return times


def _numbered(run: Callable[[], object]) -> Timed:
    return lambda _: run()


def _graph(run: Run, device: torch.device) -> Run:
    return record(lambda _: run(), torch.empty(0, device=device)).replay


def setting(weight: torch.Tensor, *, channels_last: bool) -> list[str]:
    """What times depend on beside shapes: device, torch version, threads, how they are measured, dtype and format."""
    return [
        device_name(weight.device),
        f'torch {torch.__version__}',
        f'{torch.get_num_threads()} threads' if weight.device.type == 'cpu' else '',
        'in a CUDA graph' if weight.device.type == 'cuda' else '',
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
