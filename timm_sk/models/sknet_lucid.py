"""The selective-kernel networks of the Lucid library (ChanLumerico/lucid, versions 1 and 2) on timm's ResNet trunk.

They are not the paper's. The unit is `lucid_units.BareSelectiveKernel`: true k x k branches without norm and
activation, which follow the selection instead, and one weight per branch and image. The blocks of the 18 and 34 layer
nets are 1x1, unit, 1x1 without expansion. Trunk and numbers are those of lucid/models/imgclf/sknet.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerType, create_aa, create_act_layer, get_norm_layer
from torch import Tensor, nn

from ..layers import ConvNormAct
from ..registry import register
from ._builder import family_cfgs
from .folded_blocks import FoldedBareBottleneck
from .lucid_units import BareSelectiveKernel
from .resnet import build_resnet
from .sk_blocks import ResidualBlock, zero_weight

__all__ = ['SKBasicBlock', 'SKBottleneck']

default_cfgs = family_cfgs('sknet_lucid')


class SKBasicBlock(ResidualBlock):
    """Residual block of a 1x1 convolution, a bare selective-kernel unit and a 1x1 convolution, without expansion.

    Input [B, inplanes, H, W], output [B, expansion * planes, H / stride, W / stride]. Takes what `timm.models.ResNet`
    passes to a block, and `sk_kwargs`: further arguments of `BareSelectiveKernel`. DropBlock and anti-aliasing, where
    they are given, follow the norm and the activation of the unit.
    """

    expansion = 1
    folded = FoldedBareBottleneck

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
        anti_alias = aa_layer is not None and stride > 1
        self.conv1 = ConvNormAct(inplanes, first_planes, 1, **layers)
        self.conv2 = BareSelectiveKernel(
            first_planes,
            width,
            **{'kernel_sizes': [3, 5], **(sk_kwargs or {})},
            stride=1 if anti_alias else stride,
            dilation=first_dilation or dilation,
            groups=cardinality,
            **layers,
        )
        self.bn2 = get_norm_layer(norm_layer)(width, **factory)
        self.drop_block = drop_block() if drop_block else nn.Identity()
        self.act2 = create_act_layer(act_layer, inplace=True)
        self.aa = create_aa(aa_layer, width, stride=stride, enable=anti_alias, **factory)
        self.conv3 = ConvNormAct(width, out_planes, 1, **dict(layers, act_layer=None))
        self.add_tail(
            out_planes,
            downsample=downsample,
            act_layer=act_layer,
            attn_layer=attn_layer,
            drop_path=drop_path,
            **factory,
        )

    def zero_init_last(self) -> None:
        zero_weight(self.conv3.bn)

    def residual(self, x: Tensor) -> Tensor:
        selected = self.conv2(self.conv1(x))
        return self.conv3(self.aa(self.act2(self.drop_block(self.bn2(selected)))))


class SKBottleneck(SKBasicBlock):
    """`SKBasicBlock` whose last convolution has four times as many channels."""

    expansion = 4


def _lucid(
    variant: str, pretrained: bool, block: type[SKBasicBlock], layers: list[int], kwargs: dict[str, Any], **width: int
) -> nn.Module:
    """A net of Lucid: two bare branches of true 3x3 and 5x5 kernels, attention of C // 16 channels."""
    sk_kwargs = dict(kernel_sizes=[3, 5], reduction=16, select='branch')
    model_args = dict(block=block, layers=layers, block_args=dict(sk_kwargs=sk_kwargs))
    return build_resnet(variant, pretrained, model_args | width, kwargs)


@register
def sk_resnet_18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-18 of Lucid: bare true 3x3 and 5x5 branches, one weight per branch; not timm's `skresnet18`."""
    return _lucid('sk_resnet_18', pretrained, SKBasicBlock, [2, 2, 2, 2], kwargs)


@register
def sk_resnet_34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-34 of Lucid: bare true 3x3 and 5x5 branches, one weight per branch; not timm's `skresnet34`."""
    return _lucid('sk_resnet_34', pretrained, SKBasicBlock, [3, 4, 6, 3], kwargs)


@register
def sk_resnet_50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of Lucid: bare true 3x3 and 5x5 branches, one weight per branch; not timm's `skresnet50`."""
    return _lucid('sk_resnet_50', pretrained, SKBottleneck, [3, 4, 6, 3], kwargs)


@register
def sk_resnext_50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNeXt-50-32x4d of Lucid: as its `sk_resnet_50`, with 32 groups; not timm's `skresnext50_32x4d`."""
    width = dict(cardinality=32, base_width=4)
    return _lucid('sk_resnext_50_32x4d', pretrained, SKBottleneck, [3, 4, 6, 3], kwargs, **width)
