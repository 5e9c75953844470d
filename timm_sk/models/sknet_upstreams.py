"""Selective-kernel networks of other implementations, whose nets compute other functions than the paper's.

Each is named after its source; `timm_sk.pretrained.convert` renames their state dicts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..layers import SelectiveKernel, SelectiveKernelAttn
from ..registry import register
from ._builder import family_cfgs
from .pools import SamePool
from .resnet import build_resnet
from .sk_blocks import SelectiveKernelBasic, SelectiveKernelBottleneck

default_cfgs = family_cfgs('sknet_upstreams')


class BiasedAttn(SelectiveKernelAttn):
    """Attention whose last layer has a bias (syt2's `SKConv`)."""

    def __init__(self, channels: int, num_paths: int = 2, attn_channels: int = 32, **layers: Any) -> None:
        super().__init__(channels, num_paths, attn_channels, **layers)
        weight = self.fc_select.weight
        self.fc_select.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device, dtype=weight.dtype))


class SigmoidAttn(BiasedAttn):
    """Attention whose last layer has a bias, and whose logits are sigmoids (Holocron's `SKAttention`).

    Since a softmax over the branches follows, no branch can weigh more than e times another.
    """

    def forward(self, fused: Tensor) -> Tensor:
        return super().forward(fused).sigmoid()


class BiasedSelectiveKernel(SelectiveKernel):
    """Selective-kernel unit of syt2, with `BiasedAttn`."""

    attention_cls: type[BiasedAttn] = BiasedAttn

    def make_attention(self, channels: int, num_paths: int, attn_channels: int, **layers: Any) -> nn.Module:
        return self.attention_cls(channels, num_paths, attn_channels, **layers)


class SigmoidSelectiveKernel(BiasedSelectiveKernel):
    """Selective-kernel unit of Holocron, with `SigmoidAttn`."""

    attention_cls = SigmoidAttn


class LinearReduceBottleneck(SelectiveKernelBottleneck):
    """Bottleneck of MindCV, without an activation after its first 1x1 convolution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.act = nn.Identity()


def _insight(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any]) -> nn.Module:
    """PytorchInsight's net: a dense and a grouped 3x3 branch, neither dilated, and no lower limit to the attention."""
    sk_kwargs = dict(kernel_size=[3, 3], groups=[1, 32], rd_ratio=1 / 16, rd_divisor=4, split_input=False)
    model_args = dict(block=SelectiveKernelBottleneck, layers=layers, block_args=dict(sk_kwargs=sk_kwargs))
    return build_resnet(variant, pretrained, model_args, kwargs)


@register
def skresnet50_insight(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of PytorchInsight: a dense and a grouped 3x3 branch, attention of C / 16 channels, down to 4."""
    return _insight('skresnet50_insight', pretrained, [3, 4, 6, 3], kwargs)


@register
def skresnet101_insight(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-101 of PytorchInsight: a dense and a grouped 3x3 branch, attention of C / 16 channels, down to 4."""
    return _insight('skresnet101_insight', pretrained, [3, 4, 23, 3], kwargs)


def _holocron(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any]) -> nn.Module:
    """Holocron's net: dense branches, and attention with a bias and a sigmoid before the softmax."""
    sk_kwargs = dict(
        layer=SigmoidSelectiveKernel, kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=32, split_input=False
    )
    model_args = dict(block=SelectiveKernelBottleneck, layers=layers, block_args=dict(sk_kwargs=sk_kwargs))
    return build_resnet(variant, pretrained, model_args, kwargs)


@register
def sknet50_holocron(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-50 of Holocron: dense branches, and attention with a bias and a sigmoid before the softmax."""
    return _holocron('sknet50_holocron', pretrained, [3, 4, 6, 3], kwargs)


@register
def sknet101_holocron(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-101 of Holocron: dense branches, and attention with a bias and a sigmoid before the softmax."""
    return _holocron('sknet101_holocron', pretrained, [3, 4, 23, 3], kwargs)


@register
def sknet50_syt2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-50 of syt2: `skresnext50_32x4d` with a bias in the attention's last layer."""
    sk_kwargs = dict(layer=BiasedSelectiveKernel, kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=32, split_input=False)
    model_args = dict(block=SelectiveKernelBottleneck, layers=[3, 4, 6, 3], cardinality=32, base_width=4)
    return build_resnet('sknet50_syt2', pretrained, model_args | dict(block_args=dict(sk_kwargs=sk_kwargs)), kwargs)


def _mindcv_basic(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any]) -> nn.Module:
    """MindCV's net of basic blocks: timm's, with a SAME pool after the stem."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 8, rd_divisor=16, split_input=True)
    block_args = dict(sk_kwargs=sk_kwargs)
    model_args = dict(block=SelectiveKernelBasic, layers=layers, stem_pool=SamePool, block_args=block_args)
    return build_resnet(variant, pretrained, model_args, kwargs)


@register
def skresnet18_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-18 of MindCV: `skresnet18` with a SAME pool after the stem."""
    return _mindcv_basic('skresnet18_mindcv', pretrained, [2, 2, 2, 2], kwargs)


@register
def skresnet34_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-34 of MindCV: `skresnet34` with a SAME pool after the stem."""
    return _mindcv_basic('skresnet34_mindcv', pretrained, [3, 4, 6, 3], kwargs)


def _mindcv(variant: str, pretrained: bool, kwargs: dict[str, Any], **sk_kwargs: Any) -> nn.Module:
    """MindCV's net of bottlenecks: a SAME pool after the stem, no activation after the first 1x1 convolution."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16) | sk_kwargs
    block_args = dict(sk_kwargs=sk_kwargs)
    model_args = dict(block=LinearReduceBottleneck, layers=[3, 4, 6, 3], stem_pool=SamePool, block_args=block_args)
    return build_resnet(variant, pretrained, model_args, kwargs)


@register
def skresnet50_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of MindCV: `skresnet50` with a SAME pool, and no activation after the first 1x1 convolutions."""
    return _mindcv('skresnet50_mindcv', pretrained, kwargs, rd_divisor=8, split_input=True)


@register
def skresnext50_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MindCV's skresnext50_32x4d, which has no groups and a width of 64; otherwise as `skresnet50_mindcv`."""
    return _mindcv('skresnext50_mindcv', pretrained, kwargs, rd_divisor=32, split_input=False)
