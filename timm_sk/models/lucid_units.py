"""The units of the Lucid library (ChanLumerico/lucid, versions 1 and 2), which differ from the papers'.

Lucid's `SelectiveKernel` (lucid/nn/fused.py) has true k x k branches without norm and activation, for any k; its
attention gives each image one weight per branch instead of one per branch and channel, and its width is C // r without
a lower bound. Lucid's split attention sorts channels by branch before group. Both accept a batch of 1 in train mode.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from timm.layers import LayerType
from torch import Tensor, nn

from ..layers import SelectiveKernel, SelectiveKernelAttn, SplitAttention


class LucidAttn(SelectiveKernelAttn):
    """Attention of `BareSelectiveKernel`: [B, C] -> [B, M, C].

    Args:
        channels: C, the channels of a branch.
        num_paths: M, the number of branches.
        attn_channels: Width of the hidden layer.
        select: 'branch' for one logit per branch, which all channels share, or 'channel'.
        single_image: Accept a batch of 1 in train mode.
        **layers: Further arguments of `SelectiveKernelAttn`.
    """

    def __init__(
        self, channels: int, num_paths: int, attn_channels: int, *, select: str, single_image: bool, **layers: Any
    ) -> None:
        super().__init__(channels, num_paths, attn_channels, **layers)
        self.single_image = single_image
        if select == 'branch':
            factory: dict[str, Any] = dict(device=self.fc_select.weight.device, dtype=self.fc_select.weight.dtype)
            self.fc_select = nn.Conv2d(attn_channels, num_paths, kernel_size=1, bias=False, **factory)

    def forward(self, fused: Tensor) -> Tensor:
        attended = at_least_two(fused) if self.training and self.single_image else fused
        logits = super().forward(attended)[: fused.shape[0]]  # [B, M, 1] or [B, M, C]
        return logits.expand(-1, -1, fused.shape[1])


class BareSelectiveKernel(SelectiveKernel):
    """Split, fuse, select with bare convolutions as branches.

    Input [B, in_channels, H, W], output [B, out_channels, H', W']; with odd kernels and the default padding H' is
    ceil(H / stride).

    Args:
        in_channels: Channels of the input, all of which each branch sees.
        out_channels: C, channels of each branch and of the output.
        kernel_sizes: Size of each branch's kernel, 1 or more, odd or even; sizes may repeat.
        stride: Stride of every branch.
        dilation: Dilation of every branch.
        padding: None for `k // 2` on all sides of each branch, an int for all branches, 'same' for `(k - 1) // 2`, or
            'valid' for none. The first and the third are multiplied by the dilation, and differ for even kernels.
            'same' is Lucid's, with any stride: symmetric, so it is neither torch's nor TensorFlow's for even kernels
            or strides above 1.
        groups: G, convolution groups of each branch.
        reduction: r; the attention's width is `out_channels // reduction`.
        select: 'branch' for one weight per branch, 'channel' for the paper's weight per branch and channel.
        single_image: Accept a batch of 1 in train mode. A BatchNorm of pooled values then leaves only its bias, so that
            the weights do not depend on the image.
        act_layer: Activation class or timm's name for it, in the attention.
        norm_layer: Norm class or timm's name for it, in the attention.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If an argument is out of range, or the groups do not divide the channels; at a forward pass, if the
            padding gives the branches different sizes, or in train mode with a batch of 1 without `single_image`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | str | None = None,
        groups: int = 1,
        reduction: int = 16,
        select: str = 'branch',
        single_image: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super(SelectiveKernel, self).__init__()  # other branches and attention, the same forward pass
        if not isinstance(kernel_sizes, Sequence) or isinstance(kernel_sizes, str) or not kernel_sizes:
            raise ValueError(
                f'kernel_sizes needs one entry per branch, got {kernel_sizes!r}: pass a list such as [3, 5].'
            )
        for size in kernel_sizes:
            if not isinstance(size, int) or size < 1:
                raise ValueError(
                    f'Every kernel size must be a whole number from 1, got {size!r} in {list(kernel_sizes)}.'
                )
        if padding not in (None, 'same', 'valid') and not (isinstance(padding, int) and padding >= 0):
            raise ValueError(f"padding must be None, 'same', 'valid' or a whole number from 0, got {padding!r}.")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f'groups must divide the channels of every branch, got {groups} groups for {in_channels} input and '
                f'{out_channels} output channels: choose a divisor of both.'
            )
        if not 1 <= reduction <= out_channels:
            raise ValueError(
                f'reduction must be between 1 and out_channels, got {reduction} for {out_channels} channels: the '
                'attention is out_channels // reduction wide.'
            )
        if select not in ('branch', 'channel'):
            raise ValueError(f"select must be 'branch' or 'channel', got {select!r}.")
        self.num_paths = len(kernel_sizes)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.split_input = False
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        convolution: dict[str, Any] = dict(stride=stride, dilation=dilation, groups=groups, bias=False, **factory)
        self.paths = nn.ModuleList()
        for size in kernel_sizes:
            convolution['padding'] = _padding_of(size, dilation, padding)
            self.paths.append(nn.Conv2d(in_channels, out_channels, size, **convolution))
        choices: dict[str, Any] = dict(select=select, single_image=single_image)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, **factory)
        self.attn: nn.Module = LucidAttn(out_channels, self.num_paths, out_channels // reduction, **choices, **layers)


class RadixMajorSplitAttention(SplitAttention):
    """Split attention whose last layer's channels are sorted by branch, whatever the cardinality.

    So with groups, the weights of a branch come from other groups than its features.
    """

    def by_branch(self, expanded: Tensor) -> Tensor:
        return expanded.unflatten(1, (self.radix, -1))

    def logits(self, fused: Tensor) -> Tensor:
        attended = at_least_two(fused) if self.training else fused
        return super().logits(attended)[: fused.shape[0]]


def at_least_two(fused: Tensor) -> Tensor:
    """Return the descriptor [B, C], a single image twice: a BatchNorm's batch statistics are then defined."""
    return fused.repeat(2, 1) if fused.shape[0] == 1 else fused


torch.fx.wrap('at_least_two')


def _padding_of(kernel_size: int, dilation: int, padding: int | str | None) -> int:
    if padding == 'valid':
        return 0
    if padding == 'same':
        return dilation * (kernel_size - 1) // 2
    return dilation * (kernel_size // 2) if padding is None else int(padding)
