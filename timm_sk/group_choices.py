"""Which number of groups is fastest for a grouped convolution: measured on the device, and remembered.

The measured choices are in `group_choices.json` in the folder of the local store, one for each device, torch version,
number of threads, data type, memory format and shape. Deleting the file is safe.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from .layers.folded import FoldedConv
from .layers.merged import candidates
from .measured import choose, measure, read_choices, setting, write_choices

FILE_NAME = 'group_choices.json'


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
    return choose(measure(runs, conv.weight.device), conv.groups)


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
    known = read_choices(FILE_NAME, int) if remember else {}
    found: dict[str, int] = {}
    for conv, shape in grouped.items():
        key = key_of(conv, shape, channels_last=channels_last)
        number = known.get(key, found.get(key))
        if number is None or number not in candidates(conv.groups, conv.in_channels, conv.out_channels):
            number = found[key] = fastest_groups(conv, shape, channels_last=channels_last)
        conv.merge(number)
    if remember and found:
        write_choices(FILE_NAME, found, int)
    return {conv: conv.wide_groups for conv in grouped if conv.wide_groups != conv.groups}


def key_of(conv: nn.Conv2d, input_shape: Sequence[int], *, channels_last: bool) -> str:
    """Everything that a choice depends on, as a line of text."""
    return ' | '.join(
        [
            *setting(conv.weight, channels_last=channels_last),
            f'{list(input_shape)} to {conv.out_channels}, kernel {conv.kernel_size}, stride {conv.stride}, '
            f'padding {conv.padding}, dilation {conv.dilation}, groups {conv.groups}',
        ]
    )
