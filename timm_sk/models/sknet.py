"""Selective-kernel networks on timm's ResNet trunk: the paper's, and timm's.

Paper: "Selective Kernel Networks" (Li, Wang, Hu, Yang, CVPR 2019, arXiv:1903.06586), with the authors' Caffe models
where the paper is silent: the stem's pool has no padding and rounds up. The `skresn*` variants are timm's
(`timm/models/sknet.py`) and further depths in its style: `skresnet*` split the input channels over the branches,
which the paper does not. `sknet_atto` is this project's own.
"""

from typing import Any

from torch import nn

from ..layers import ConvNormAct, SelectiveKernel
from ..registry import register
from ._builder import family_cfgs
from .pools import CeilPool
from .resnet import build_resnet
from .sk_blocks import SelectiveKernelBasic, SelectiveKernelBottleneck

__all__ = ['SelectiveKernelBasic', 'SelectiveKernelBottleneck', 'StackedSelectiveKernel']

default_cfgs = family_cfgs('sknet')


class StackedSelectiveKernel(SelectiveKernel):
    """Selective-kernel unit whose kernels above 3 are stacks of 3x3 convolutions: two for 5x5, three for 7x7.

    Each convolution has its norm and activation, and the last has the stride, so that the receptive field is that of
    the large kernel. `keep_3x3` has no effect.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'keep_3x3': False})

    def make_path(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, **conv_kwargs: Any
    ) -> nn.Module:
        path = nn.Sequential()
        for _ in range((kernel_size - 1) // 2 - 1):
            path.append(ConvNormAct(in_channels, out_channels, 3, **conv_kwargs))
            in_channels = out_channels
        return path.append(ConvNormAct(in_channels, out_channels, 3, stride=stride, **conv_kwargs))


def _skresnet_basic(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any]) -> nn.Module:
    """The SK-ResNet of timm with basic blocks: r=8, L=16, the input channels split over the branches."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 8, rd_divisor=16, keep_3x3=True, split_input=True)
    model_args = dict(block=SelectiveKernelBasic, layers=layers, block_args=dict(sk_kwargs=sk_kwargs))
    return build_resnet(variant, pretrained, model_args, kwargs)


def _skresnet(
    variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any], **trunk_args: Any
) -> nn.Module:
    """The SK-ResNet of timm with bottlenecks: r=16, L=8, the input channels split over the branches."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=8, keep_3x3=True, split_input=True)
    model_args = dict(block=SelectiveKernelBottleneck, layers=layers, block_args=dict(sk_kwargs=sk_kwargs))
    return build_resnet(variant, pretrained, model_args | trunk_args, kwargs)


def _sknet(
    variant: str,
    pretrained: bool,
    layers: list[int],
    kwargs: dict[str, Any],
    *,
    stem_pool: Any = None,
    **sk_kwargs: Any,
) -> nn.Module:
    """The paper's SK[M=2, G=32, r=16] with L=32, in the width of ResNeXt 32x4d."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=32, keep_3x3=True, split_input=False) | sk_kwargs
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=layers,
        cardinality=32,
        base_width=4,
        stem_pool=stem_pool,
        block_args=dict(sk_kwargs=sk_kwargs),
    )
    return build_resnet(variant, pretrained, model_args, kwargs)


@register
def skresnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-18 of timm."""
    return _skresnet_basic('skresnet18', pretrained, [2, 2, 2, 2], kwargs)


@register
def skresnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-34 of timm."""
    return _skresnet_basic('skresnet34', pretrained, [3, 4, 6, 3], kwargs)


@register
def skresnet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-26, a depth that timm lacks."""
    return _skresnet('skresnet26', pretrained, [2, 2, 2, 2], kwargs)


@register
def skresnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of timm."""
    return _skresnet('skresnet50', pretrained, [3, 4, 6, 3], kwargs)


@register
def skresnet50d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50-D of timm: `skresnet50` with a deep stem and average pooling in the shortcuts."""
    deep = dict(stem_type='deep', stem_width=32, avg_down=True)
    return _skresnet('skresnet50d', pretrained, [3, 4, 6, 3], kwargs, **deep)


@register
def skresnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-101, a depth that timm lacks."""
    return _skresnet('skresnet101', pretrained, [3, 4, 23, 3], kwargs)


@register
def skresnext26_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNeXt-26-32x4d, a depth that timm lacks."""
    return _sknet('skresnext26_32x4d', pretrained, [2, 2, 2, 2], kwargs)


@register
def skresnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNeXt-50-32x4d of timm: `sknet50` except for the padding of the stem's pool."""
    return _sknet('skresnext50_32x4d', pretrained, [3, 4, 6, 3], kwargs)


@register
def skresnext101_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNeXt-101-32x4d, a depth that timm lacks."""
    return _sknet('skresnext101_32x4d', pretrained, [3, 4, 23, 3], kwargs)


@register
def sknet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-26 of the paper: two SK units per stage."""
    return _sknet('sknet26', pretrained, [2, 2, 2, 2], kwargs, stem_pool=CeilPool)


@register
def sknet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-50 of the paper (Table 1), which `skresnext50_32x4d` equals except for the stem's pool."""
    return _sknet('sknet50', pretrained, [3, 4, 6, 3], kwargs, stem_pool=CeilPool)


@register
def sknet50_3path(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-50 with three branches, K3, K5 and K7 of the paper's Table 7: 3x3 kernels of dilation 1, 2 and 3."""
    kernels = [3, 5, 7]
    return _sknet('sknet50_3path', pretrained, [3, 4, 6, 3], kwargs, stem_pool=CeilPool, kernel_size=kernels)


@register
def sknet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-101 as the authors published it: the attention of the second stage is 16 wide, not 32 as the formula says.

    `sk_kwargs=dict(rd_channels=None)` builds the net of the formula.
    """
    widths = [32, 16, 32, 64]
    return _sknet('sknet101', pretrained, [3, 4, 23, 3], kwargs, stem_pool=CeilPool, rd_channels=widths)


@register
def sknet_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet for 32x32 images, small enough to ship its weights: SK[M=2, G=8, r=8] with L=8, a unit per stage."""
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
    )
    return build_resnet('sknet_atto', pretrained, model_args, kwargs)
