"""How far the kernel of each branch of a unit reaches, read from its convolutions as they are."""

from torch import nn

from .selective_kernel import SelectiveKernel
from .split_attention import SplitAttention


def kernel_extents(unit: SelectiveKernel | SplitAttention) -> tuple[int, ...]:
    """The extent of each branch's kernel in pixels of the unit's input, in the branches' order.

    A kernel of size k with dilation d reaches d * (k - 1) + 1; convolutions one after the other reach further. Where
    height and width differ, the longer counts. Norms may be folded.
    """
    if isinstance(unit, SplitAttention):
        return (_extent(unit.conv),) * unit.radix
    return tuple(map(_extent, unit.paths))


def _extent(branch: nn.Module) -> int:
    extent, step = 1, 1  # step: pixels of the branch's input between neighbours of what the next convolution sees
    for conv in branch.modules():
        if isinstance(conv, nn.Conv2d):
            pairs = zip(conv.kernel_size, conv.dilation, strict=True)
            extent += step * max(dilation * (size - 1) for size, dilation in pairs)
            step *= max(conv.stride)
    return extent
