"""Exact group merging: a grouped convolution as one with fewer, wider groups.

Groups that are too narrow for a processor's matrix units leave most of them idle. The weight of a merged group has the
narrow ones on its diagonal and zeros elsewhere, so the function is the same, for `groups / merged` times the
multiplications.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MergedConv(nn.Conv2d):
    """A grouped convolution that trains as one with fewer, wider groups.

    Input [B, in_channels, H, W], output [B, out_channels, H', W']. Its parameters are the narrow convolution's own:
    each step makes the wide weight of them, and autograd gathers its gradient back. So optimizers that hold them,
    and state dicts, do not notice.

    Args:
        conv: The convolution whose numbers and parameters it has.
        wide_groups: A divisor of its groups.
    """

    def __init__(self, conv: nn.Conv2d, wide_groups: int) -> None:
        super().__init__(**arguments_of(conv), bias=conv.bias is not None)
        self.weight = conv.weight
        self.bias = conv.bias
        self.wide_groups = wide_groups
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        wide = merge_groups(self.weight, self.groups, self.wide_groups)
        return F.conv2d(x, wide, self.bias, self.stride, self.padding, self.dilation, self.wide_groups)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, as {self.wide_groups} groups'


def arguments_of(conv: nn.Conv2d) -> dict[str, Any]:
    """What to make a convolution like another one with, but for its bias; parameters are to be put in."""
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
    return {name: getattr(conv, name) for name in names} | dict(device='meta')


def merge_groups(weight: Tensor, groups: int, merged: int) -> Tensor:
    """Spread the weight of a convolution with `groups` groups over `merged` ones, filled up with zeros.

    Args:
        weight: [out_channels, in_channels / groups, kernel height, kernel width].
        groups: The convolution's groups.
        merged: A divisor of them.

    Returns:
        [out_channels, in_channels / merged, kernel height, kernel width], in the weight's dtype and memory format.

    Raises:
        ValueError: If `merged` does not divide `groups`.
    """
    if merged < 1 or groups % merged:
        raise ValueError(f'Merged groups must divide the {groups} groups of the convolution, got {merged}.')
    channels, share, *kernel = weight.shape
    count = groups // merged  # of narrow groups in a wide one
    narrow = weight.reshape(merged, count, channels // groups, share, *kernel)
    wide = weight.new_zeros(merged, count, channels // groups, count, share, *kernel)
    diagonal = torch.arange(count, device=weight.device)
    wide[:, diagonal, :, diagonal] = narrow.transpose(0, 1)
    is_nhwc = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    merged_weight = wide.reshape(channels, count * share, *kernel)
    return merged_weight.contiguous(memory_format=torch.channels_last) if is_nhwc else merged_weight


def candidates(groups: int, in_channels: int, out_channels: int, *, widest: int = 128) -> list[int]:
    """Numbers of groups that may be faster, the convolution's own first.

    A merged group has at most `widest` input and output channels. Depthwise convolutions, which have kernels of their
    own and are bound by memory, have no other candidate.
    """
    if groups in (in_channels, out_channels):
        return [groups]
    fewer = [number for number in range(groups - 1, 0, -1) if groups % number == 0]
    return [groups, *(number for number in fewer if max(in_channels, out_channels) // number <= widest)]
