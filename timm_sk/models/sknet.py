"""Selective-kernel networks on timm's ResNet trunk.

Paper: "Selective Kernel Networks" (Li, Wang, Hu, Yang, CVPR 2019, arXiv:1903.06586). The `skresn*` variants are
timm's (`timm/models/sknet.py`): the basic ones, and those with 50 layers except `skresnext50_32x4d`, split the input
channels over the branches, which the paper does not. `sknet_atto` is this project's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerType, create_attn
from timm.models import ResNet
from torch import Tensor, nn

from ..layers import ConvNormAct, SelectiveKernel
from ..registry import register
from .build import build_model, family_cfgs

__all__ = ['SelectiveKernelBasic', 'SelectiveKernelBottleneck']

default_cfgs = family_cfgs('sknet')


class _ResidualBlock(nn.Module):
    """Shortcut, stochastic depth and the last activation around the convolutions of a subclass."""

    expansion: int

    def _add_tail(
        self,
        out_channels: int,
        *,
        downsample: nn.Module | None,
        act_layer: LayerType,
        attn_layer: LayerType | None,
        drop_path: nn.Module | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Add what follows the convolutions, in the order that timm's state dict has."""
        self.se = create_attn(attn_layer, out_channels, device=device, dtype=dtype)
        self.act = act_layer(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        if self.se is not None:
            residual = self.se(residual)
        if self.drop_path is not None:
            residual = self.drop_path(residual)
        if self.downsample is not None:
            x = self.downsample(x)
        residual += x
        return self.act(residual)


class SelectiveKernelBasic(_ResidualBlock):
    """Basic residual block whose first 3x3 convolution is a selective-kernel unit.

    Input [B, inplanes, H, W], output [B, planes, H / stride, W / stride]. Takes what `timm.models.ResNet` passes to
    a block, and `sk_kwargs`: further arguments of `timm_sk.SelectiveKernel`.

    Raises:
        ValueError: If `cardinality` or `base_width` are not those of a plain basic block, which has no use for others.
    """

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        cardinality: int = 1,
        base_width: int = 64,
        sk_kwargs: dict[str, Any] | None = None,
        reduce_first: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        attn_layer: LayerType | None = None,
        aa_layer: type[nn.Module] | None = None,
        drop_block: Callable[[], nn.Module] | None = None,
        drop_path: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if cardinality != 1 or base_width != 64:
            raise ValueError(
                f'A basic block needs cardinality=1 and base_width=64, got {cardinality} and {base_width}: '
                'use a bottleneck variant for groups and other widths.'
            )
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, **factory)
        first_planes = planes // reduce_first
        self.conv1 = SelectiveKernel(
            inplanes,
            first_planes,
            stride=stride,
            dilation=first_dilation or dilation,
            aa_layer=aa_layer,
            drop_layer=drop_block,
            **layers,
            **(sk_kwargs or {}),
        )
        self.conv2 = ConvNormAct(first_planes, planes, 3, dilation=dilation, **dict(layers, act_layer=None))
        self._add_tail(
            planes, downsample=downsample, act_layer=act_layer, attn_layer=attn_layer, drop_path=drop_path, **factory
        )

    def zero_init_last(self) -> None:
        _zero_weight(self.conv2.bn)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class SelectiveKernelBottleneck(_ResidualBlock):
    """Bottleneck residual block whose 3x3 convolution is a selective-kernel unit: the paper's SK unit.

    Input [B, inplanes, H, W], output [B, 4 * planes, H / stride, W / stride]. Takes what `timm.models.ResNet` passes
    to a block, and `sk_kwargs`: further arguments of `timm_sk.SelectiveKernel`.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        cardinality: int = 1,
        base_width: int = 64,
        sk_kwargs: dict[str, Any] | None = None,
        reduce_first: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        attn_layer: LayerType | None = None,
        aa_layer: type[nn.Module] | None = None,
        drop_block: Callable[[], nn.Module] | None = None,
        drop_path: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, **factory)
        width = planes * base_width // 64 * cardinality
        first_planes = width // reduce_first
        out_planes = planes * self.expansion
        self.conv1 = ConvNormAct(inplanes, first_planes, 1, **layers)
        self.conv2 = SelectiveKernel(
            first_planes,
            width,
            stride=stride,
            dilation=first_dilation or dilation,
            groups=cardinality,
            aa_layer=aa_layer,
            drop_layer=drop_block,
            **layers,
            **(sk_kwargs or {}),
        )
        self.conv3 = ConvNormAct(width, out_planes, 1, **dict(layers, act_layer=None))
        self._add_tail(
            out_planes,
            downsample=downsample,
            act_layer=act_layer,
            attn_layer=attn_layer,
            drop_path=drop_path,
            **factory,
        )

    def zero_init_last(self) -> None:
        _zero_weight(self.conv3.bn)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def _zero_weight(norm: nn.Module) -> None:
    weight = getattr(norm, 'weight', None)
    if weight is not None:
        nn.init.zeros_(weight)


def _build_resnet(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    """Build a variant from its numbers; what the caller passes wins."""
    return build_model(ResNet, variant, pretrained, **{**model_args, **kwargs})


@register
def skresnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-18 of timm: the input channels are split over the branches to keep the parameter count low."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 8, rd_divisor=16, keep_3x3=True, split_input=True)
    model_args = dict(
        block=SelectiveKernelBasic,
        layers=[2, 2, 2, 2],
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('skresnet18', pretrained, model_args, kwargs)


@register
def skresnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-34 of timm: the input channels are split over the branches to keep the parameter count low."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 8, rd_divisor=16, keep_3x3=True, split_input=True)
    model_args = dict(
        block=SelectiveKernelBasic,
        layers=[3, 4, 6, 3],
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('skresnet34', pretrained, model_args, kwargs)


@register
def skresnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of timm: the input channels are split over the branches to keep the parameter count low."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=8, keep_3x3=True, split_input=True)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[3, 4, 6, 3],
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('skresnet50', pretrained, model_args, kwargs)


@register
def skresnet50d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50-D of timm: `skresnet50` with a deep stem and average pooling in the shortcuts."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=8, keep_3x3=True, split_input=True)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[3, 4, 6, 3],
        stem_width=32,
        stem_type='deep',
        avg_down=True,
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('skresnet50d', pretrained, model_args, kwargs)


@register
def skresnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNeXt-50-32x4d of timm: the paper's SKNet-50 except for the padding of the stem's pool."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=32, keep_3x3=True, split_input=False)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[3, 4, 6, 3],
        cardinality=32,
        base_width=4,
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('skresnext50_32x4d', pretrained, model_args, kwargs)


@register
def sknet_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet for 32x32 pictures, small enough to ship its weights: SK[M=2, G=8, r=8] with L=8, a unit per stage."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 8, rd_divisor=8, keep_3x3=True, split_input=False)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[1, 1, 1, 1],
        channels=(16, 24, 40, 56),
        cardinality=8,
        base_width=16,
        stem_width=8,
        stem_type='deep',
        block_args=dict(sk_kwargs=sk_kwargs),
        zero_init_last=False,
    )
    return _build_resnet('sknet_atto', pretrained, model_args, kwargs)
