"""Receptive field of each branch of a unit."""

from torch import nn

from .selective_kernel import SelectiveKernel
from .split_attention import SplitAttention


def kernel_extents(unit: SelectiveKernel | SplitAttention) -> tuple[int, ...]:
    """The receptive field of each branch, in pixels of the unit's input.

    A kernel of size k with dilation d has an extent of d * (k - 1) + 1; stacked convolutions have a larger one. Where
    height and width differ, the larger counts. Norms may be folded.
    """
    if isinstance(unit, SplitAttention):
        return (_extent(unit.conv),) * unit.radix
    return tuple(map(_extent, unit.paths))


def _extent(branch: nn.Module) -> int:
    extent, step = 1, 1  # step: pixels of the branch's input between neighbouring inputs of the next convolution
    for conv in branch.modules():
        if isinstance(conv, nn.Conv2d):
            pairs = zip(conv.kernel_size, conv.dilation, strict=True)
            extent += step * max(dilation * (size - 1) for size, dilation in pairs)
            step *= max(conv.stride)
    return extent
