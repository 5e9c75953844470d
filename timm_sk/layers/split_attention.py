"""Split attention of "ResNeSt: Split-Attention Networks" (Zhang et al., arXiv:2004.08955).

Signature, parameter names and outputs are those of `timm.layers.SplitAttn`. Differences: the splits are never copied
into one tensor, the default norm is a BatchNorm, and arguments are checked.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer, get_norm_layer, make_divisible
from torch import Tensor, nn

from .. import ops
from .bypass import refuse_scripting
from .conv_sequence import make_branches
from .folded_conv import fold_norm
from .pooled_norm import make_pooled_norm, require_batch


class SplitAttention(nn.Module):
    """Split, fuse, select, with one convolution of `radix` times as many channels and groups for all branches.

    Input [B, in_channels, H, W], output [B, out_channels, H', W'] where H' is ceil(H / stride) with the default
    padding. Each of the `groups` cardinal groups has its own attention. With one branch, a sigmoid weighs each channel.

    Args:
        in_channels: Channels of the input.
        out_channels: C, channels of each branch and of the output; None for `in_channels`.
        kernel_size: Odd size of the kernel.
        stride: Stride of the convolution.
        padding: Padding of the convolution; None keeps the size of the input at stride 1.
        dilation: Dilation of the convolution.
        groups: K, the cardinality.
        bias: Give the convolution a bias.
        radix: R, the number of branches.
        rd_ratio: Width of the attention as a share of `in_channels * radix`, rounded to `rd_divisor`, at least 32.
        rd_channels: Width of the attention for each branch, instead of `rd_ratio`.
        rd_divisor: Divisor of the attention's width, which is not below 90 % of the exact ratio.
        act_layer: Activation class or timm's name for it, after the convolution and in the attention.
        norm_layer: Norm class or timm's name for it, after the convolution and in the attention; None for no norm.
        drop_layer: Function that makes the layer between norm and activation, such as DropBlock.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If `radix` is below 1, or the groups do not divide the channels or the attention's width; at a
            forward pass in train mode with a batch of 1, if the attention's norm is a BatchNorm that is training and
            not synchronised.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        radix: int = 2,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType | None = nn.BatchNorm2d,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        out_channels = out_channels or in_channels
        if radix < 1:
            raise ValueError(f'radix, the number of branches, must be 1 or more, got {radix}.')
        if rd_channels is None:
            attn_channels = make_divisible(in_channels * radix * rd_ratio, min_value=32, divisor=rd_divisor)
        else:
            attn_channels = rd_channels * radix
        if groups < 1 or in_channels % (groups * radix) or out_channels % groups:
            raise ValueError(
                'groups, the cardinality, must divide the output channels, and times the radix the input channels; '
                f'got {groups} groups, radix {radix}, {in_channels} input and {out_channels} output channels: choose '
                f'a multiple of {max(groups, 1) * radix} channels.'
            )
        if attn_channels < 1 or attn_channels % groups:
            raise ValueError(
                f"groups, the cardinality, must divide the attention's width, which is 1 or more; got {groups} groups "
                f'and a width of {attn_channels}: pass rd_channels, whose product with the radix {radix} is the width.'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.radix = radix
        self.cardinality = groups
        self.gate = 'softmax' if radix > 1 else 'sigmoid'
        self.conv = nn.Conv2d(
            in_channels,
            out_channels * radix,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            groups=groups * radix,
            bias=bias,
            **factory,
        )
        self.bn0 = get_norm_layer(norm_layer)(out_channels * radix, **factory) if norm_layer else nn.Identity()
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act0 = create_act_layer(act_layer, inplace=True)
        self.fc1 = nn.Conv2d(out_channels, attn_channels, kernel_size=1, groups=groups, **factory)
        self.bn1 = make_pooled_norm(norm_layer, attn_channels, **factory) if norm_layer else nn.Identity()
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(attn_channels, out_channels * radix, kernel_size=1, groups=groups, **factory)

    def split(self, x: Tensor) -> ops.Branches | list[Tensor]:
        """Run the convolution: [B, in_channels, H, W] -> R x [B, C, H', W']; a list when `torch.fx` traces."""
        return ops.join([make_branches(x, [self.conv, self.bn0, self.drop, self.act0], radix=self.radix)])

    def logits(self, fused: Tensor) -> Tensor:
        """Compute the logits from the descriptor: [B, C] -> [B, R, C]."""
        require_batch(fused, self.bn1)
        hidden = self.act1(self.bn1(self.fc1(fused[:, :, None, None])))  # [B, d, 1, 1]
        return self.by_branch(self.fc2(hidden).flatten(1))

    def by_branch(self, expanded: Tensor) -> Tensor:
        """Sort the channels of the last layer from group first to branch first: [B, K * R * C / K] -> [B, R, C]."""
        return expanded.unflatten(1, (self.cardinality, self.radix, -1)).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.split(x)  # R x [B, C, H', W']
        return ops.select(branches, self.logits(ops.fuse(branches)), self.gate)

    __prepare_scriptable__ = refuse_scripting

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions before them, where that is possible.

        Raises:
            ValueError: In train mode.
        """
        fold_norm(self, 'conv', 'bn0', act='act0', drop='drop')
        fold_norm(self, 'fc1', 'bn1', act='act1')
