"""The selective-kernel networks of the Lucid library (ChanLumerico/lucid, versions 1 and 2) on timm's ResNet trunk.

They are not the paper's: norm and activation follow the unit, `lucid_units.BareSelectiveKernel`, and the blocks of the
18 and 34 layer nets have no expansion. Trunk and numbers are those of lucid/models/imgclf/sknet.py.
"""

from typing import Any

from timm.layers import create_aa, create_act_layer, get_norm_layer
from torch import nn

from ..registry import register
from ._builder import family_cfgs
from .lucid_units import BareSelectiveKernel
from .residual_block import BlockArguments
from .resnet import build_resnet
from .sk_blocks import SelectiveKernelBottleneck

__all__ = ['SKBasicBlock', 'SKBottleneck']

default_cfgs = family_cfgs('sknet_lucid')


class SKBasicBlock(SelectiveKernelBottleneck):
    """Residual block of a 1x1 convolution, a bare selective-kernel unit and a 1x1 convolution, without expansion.

    Arguments are those of `SelectiveKernelBottleneck`, with `sk_kwargs` for `BareSelectiveKernel`. DropBlock and
    anti-aliasing follow the norm and the activation of the unit.
    """

    expansion = 1
    order = ('conv1', 'conv2', 'bn2', 'drop_block', 'act2', 'aa', 'conv3')

    def add_unit(
        self, in_channels: int, width: int, stride: int, args: BlockArguments, sk_kwargs: dict[str, Any] | None
    ) -> None:
        anti_alias = args.aa_layer is not None and stride > 1
        self.conv2 = BareSelectiveKernel(
            in_channels,
            width,
            **{'kernel_sizes': [3, 5], **(sk_kwargs or {})},
            stride=1 if anti_alias else stride,
            dilation=args.unit_dilation,
            groups=args.cardinality,
            **args.layers,
        )
        self.bn2 = get_norm_layer(args.norm_layer)(width, **args.factory)
        self.drop_block = args.drop_block() if args.drop_block else nn.Identity()
        self.act2 = create_act_layer(args.act_layer, inplace=True)
        self.aa = create_aa(args.aa_layer, width, stride=stride, enable=anti_alias, **args.factory)


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
