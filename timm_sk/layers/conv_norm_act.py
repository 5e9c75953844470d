"""Convolution, norm, activation, with timm's parameter names (`conv`, `bn`).

Unlike in `timm.layers.ConvNormAct`, norm and activation are separate modules, so
`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which replaces the norm, keeps the activation.
"""

from collections.abc import Callable

import torch
from timm.layers import LayerType, create_aa, create_act_layer, create_conv2d, get_norm_layer
from torch import Tensor, nn

from .bypass import can_bypass
from .conv_sequence import run
from .folded_conv import FoldedConv, FoldedConvNormAct, fold_norm, is_identity


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, and optional DropBlock, activation and anti-aliasing.

    Input [B, in_channels, H, W], output [B, out_channels, ceil(H / stride), ceil(W / stride)].

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd size of the kernel; the padding keeps the size of the input at stride 1.
        stride: Stride of the convolution, or of the anti-aliasing layer.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        norm_layer: Norm class or timm's name for it.
        act_layer: Activation class or timm's name for it; None for no activation.
        aa_layer: Anti-aliasing layer class; used where the stride is above 1.
        drop_layer: Function that makes the layer between norm and activation, such as DropBlock.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm_layer: LayerType = nn.BatchNorm2d,
        act_layer: LayerType | None = nn.ReLU,
        aa_layer: type[nn.Module] | None = None,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        anti_alias = aa_layer is not None and stride > 1
        self.conv = create_conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=1 if anti_alias else stride,
            dilation=dilation,
            groups=groups,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.bn = get_norm_layer(norm_layer)(out_channels, device=device, dtype=dtype)
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act = create_act_layer(act_layer, inplace=True) if act_layer else nn.Identity()
        self.aa = create_aa(aa_layer, out_channels, stride=stride, enable=anti_alias, device=device, dtype=dtype)

    def layers(self) -> list[nn.Module]:
        """The modules in the order in which they run."""
        return [self.conv, self.bn, self.drop, self.act, self.aa]

    def forward(self, x: Tensor) -> Tensor:
        return run(x, self.layers())

    def fuse(self) -> nn.Module:
        """Fold the norm into the convolution; timm replaces this module by the value.

        Returns:
            The folded module, or this one, partly folded, where some layers cannot be folded.

        Raises:
            ValueError: In train mode.
        """
        fold_norm(self, 'conv', 'bn', act='act', drop='drop')
        is_plain = type(self) is ConvNormAct and can_bypass(self, parts=False)
        if is_plain and isinstance(self.conv, FoldedConv) and all(map(is_identity, (self.bn, self.drop, self.act))):
            return FoldedConvNormAct(self.conv, self.aa)
        return self
