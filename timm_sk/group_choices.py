"""Which number of groups is fastest for a grouped convolution: measured on the device, and remembered.

The measured choices are in `group_choices.json` in the folder of the local store, one for each device, torch version,
number of threads, data type, memory format and shape. Deleting the file is safe.
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

import torch
from torch import nn

from .errors import UnwritableStoreError
from .layers.folded import FoldedConv
from .layers.merged import candidates
from .pretrained import store_root

FILE_NAME = 'group_choices.json'
ROUNDS = 7
MARGIN = 0.05  # below that, a difference may be noise, and the merged weight takes memory
_SAMPLE_SECONDS = 1e-3


def choose(times: Mapping[int, Sequence[float]], groups: int, *, margin: float = MARGIN) -> int:
    """Choose a number of groups from measured times: the fastest by its median, if it wins by the margin.

    Args:
        times: For each number of groups, times of any unit; all numbers were measured equally often.
        groups: The convolution's own number, which is among them.
        margin: Share of the unmerged time that merging must save.
    """
    medians = {number: statistics.median(taken) for number, taken in times.items()}
    fastest = min(medians, key=lambda number: medians[number])
    return fastest if medians[fastest] < (1 - margin) * medians[groups] else groups


def measure(
    runs: Mapping[int, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, list[float]]:
    """Time every run once per round, one after the other, so that what slows the machine down slows all of them.

    Args:
        runs: What to run, by number of groups. A first run of each is not counted.
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
    for number, run in runs.items():
        sample(run, 1)
        seconds = max(sample(run, 1), 1e-7)
        repeats[number] = min(math.ceil(_SAMPLE_SECONDS / seconds), 100)
    times: dict[int, list[float]] = {number: [] for number in runs}
    for _ in range(rounds):
        for number, run in runs.items():
            times[number].append(sample(run, repeats[number]))
    return times


@torch.no_grad()
def fastest_groups(conv: FoldedConv, input_shape: Sequence[int], *, channels_last: bool) -> int:
    """Measure a convolution unmerged and merged, on its device, as it runs in inference; it is left unmerged."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*input_shape, generator=generator).to(conv.weight)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    runs: dict[int, Callable[[], object]] = {}
    for number in candidates(conv.groups, conv.in_channels, conv.out_channels):
        twin = FoldedConv(conv, conv.weight, conv.bias)
        twin.activation = conv.activation
        twin.merge(number)
        if channels_last:
            twin.pack(input_shape)
        runs[number] = lambda twin=twin: twin(x)  # type: ignore[misc]
    if len(runs) == 1:
        return conv.groups
    return choose(measure(runs, synchronize=synchronizer(conv.weight.device)), conv.groups)


def synchronizer(device: torch.device) -> Callable[[], object] | None:
    """What waits until a device is idle; None where calls return when they are done."""
    return partial(torch.cuda.synchronize, device) if device.type == 'cuda' else None


def merge_where_faster(
    shapes: Mapping[FoldedConv, Sequence[int]], *, channels_last: bool, remember: bool = True
) -> dict[FoldedConv, int]:
    """Merge the groups of convolutions where that is faster on inputs of these shapes.

    Args:
        shapes: Input shape [B, C, H, W] of each convolution.
        channels_last: Whether inputs are.
        remember: Read and write the file of earlier choices.

    Returns:
        The groups of the convolutions that were merged.
    """
    grouped = {
        conv: list(shape)
        for conv, shape in shapes.items()
        if len(candidates(conv.groups, conv.in_channels, conv.out_channels)) > 1
    }
    if not grouped:
        return {}
    known = read_choices() if remember else {}
    found: dict[str, int] = {}
    for conv, shape in grouped.items():
        key = key_of(conv, shape, channels_last=channels_last)
        number = known.get(key, found.get(key))
        if number is None or number not in candidates(conv.groups, conv.in_channels, conv.out_channels):
            number = found[key] = fastest_groups(conv, shape, channels_last=channels_last)
        conv.merge(number)
    if remember and found:
        write_choices(found)
    return {conv: conv.wide_groups for conv in grouped if conv.wide_groups != conv.groups}


def key_of(conv: nn.Conv2d, input_shape: Sequence[int], *, channels_last: bool) -> str:
    """Everything that a choice depends on, as a line of text."""
    weight = conv.weight
    return ' | '.join(
        [
            device_name(weight.device),
            f'torch {torch.__version__}',
            f'{torch.get_num_threads()} threads' if weight.device.type == 'cpu' else '',
            str(weight.dtype).removeprefix('torch.'),
            'channels last' if channels_last else 'contiguous',
            f'{list(input_shape)} to {conv.out_channels}, kernel {conv.kernel_size}, stride {conv.stride}, '
            f'padding {conv.padding}, dilation {conv.dilation}, groups {conv.groups}',
        ]
    )


@lru_cache(maxsize=8)
def device_name(device: torch.device) -> str:
    """A processor's name with its vector and matrix instructions, or a GPU's."""
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}'
    if device.type != 'cpu':
        return device.type
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not on Linux
        return f'{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}'
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in reversed(lines))}
    flags = (facts.get('flags') or facts.get('Features') or '').split()
    wide = sorted(flag for flag in flags if flag.startswith(('avx', 'amx', 'asimd', 'sve')))
    return ' '.join([facts.get('model name', platform.machine()), *wide])


def read_choices() -> dict[str, int]:
    """The choices that were remembered; none where the file is missing, damaged or not readable."""
    try:
        content = json.loads((store_root() / FILE_NAME).read_text())
    except (OSError, ValueError):  # among them UnwritableStoreError
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: number for key, number in content.items() if type(number) is int}


def write_choices(found: Mapping[str, int]) -> None:
    """Add choices to the file, which is replaced as a whole; without a place to write, they are measured again."""
    try:
        folder = store_root()
        folder.mkdir(parents=True, exist_ok=True)
        merged = read_choices() | dict(found)
        descriptor, partial = tempfile.mkstemp(prefix=f'{FILE_NAME}.', dir=folder)
        try:
            with os.fdopen(descriptor, 'w') as file:
                json.dump(merged, file, indent=2, sort_keys=True)
            Path(partial).replace(folder / FILE_NAME)
        finally:
            Path(partial).unlink(missing_ok=True)
    except (OSError, UnwritableStoreError):
        return
