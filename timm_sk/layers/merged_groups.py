"""Group merging: a grouped convolution computed as one with fewer, wider groups.

Groups that are too narrow leave most of a processor's matrix units idle. The weight of a merged group is
block-diagonal, so the values are the same, for `groups / merged` times the multiplications.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MergedConv(nn.Conv2d):
    """A grouped convolution that trains as one with fewer, wider groups.

    Input [B, in_channels, H, W], output [B, out_channels, H', W']. It shares the parameters of the narrow convolution,
    so optimizers and state dicts need no change; each step builds the wide weight from them.

    Args:
        conv: The convolution that it replaces.
        wide_groups: A divisor of the number of groups.
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
    """Arguments for a convolution like another one, without its bias; its parameters are on the meta device."""
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
    return {name: getattr(conv, name) for name in names} | dict(device='meta')


def merge_groups(weight: Tensor, groups: int, merged: int) -> Tensor:
    """Make the block-diagonal weight of a convolution with fewer groups.

    Args:
        weight: [out_channels, in_channels / groups, kernel height, kernel width].
        groups: Number of groups of the convolution.
        merged: Number of merged groups, a divisor of `groups`.

    Returns:
        [out_channels, in_channels / merged, kernel height, kernel width], in the weight's dtype and memory format.

    Raises:
        ValueError: If `merged` does not divide `groups`.
    """
    if merged < 1 or groups % merged:
        raise ValueError(f'Merged groups must divide the {groups} groups of the convolution, got {merged}.')
    channels, share, *kernel = weight.shape
    count = groups // merged  # narrow groups in a wide one
    narrow = weight.reshape(merged, count, channels // groups, share, *kernel)
    wide = weight.new_zeros(merged, count, channels // groups, count, share, *kernel)
    diagonal = torch.arange(count, device=weight.device)
    wide[:, diagonal, :, diagonal] = narrow.transpose(0, 1)
    is_nhwc = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    merged_weight = wide.reshape(channels, count * share, *kernel)
    return merged_weight.contiguous(memory_format=torch.channels_last) if is_nhwc else merged_weight


def candidates(groups: int, in_channels: int, out_channels: int, *, widest: int = 128) -> list[int]:
    """Numbers of groups that may be faster, starting with `groups`.

    A merged group has at most `widest` input and output channels. Depthwise convolutions, which are bound by memory and
    have special kernels, are not merged.
    """
    if groups in (in_channels, out_channels):
        return [groups]
    fewer = [number for number in range(groups - 1, 0, -1) if groups % number == 0]
    return [groups, *(number for number in fewer if max(in_channels, out_channels) // number <= widest)]
