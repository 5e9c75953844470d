"""ResNeSt of other implementations, whose nets compute other functions than the authors'.

`timm_sk.pretrained.convert` renames their state dicts.
"""

from typing import Any

from torch import nn

from ..registry import register
from ._builder import family_cfgs
from .pools import SameAveragePool, SamePool
from .resnest import build_resnest
from .resnest_blocks import SplitAttentionBasic, SplitAttentionBottleneck

__all__ = ['SamePoolBottleneck', 'SplitAttentionBasic']

default_cfgs = family_cfgs('resnest_upstreams')


class SamePoolBottleneck(SplitAttentionBottleneck):
    """ResNeSt's block of MindCV, with a SAME average pool that does not count its padding."""

    def make_pool(self, stride: int) -> nn.Module:
        return SameAveragePool(3, stride)


class ExclusivePoolBottleneck(SplitAttentionBottleneck):
    """ResNeSt's block with an average pool that does not count its padding, as PaddleClas has it."""

    def make_pool(self, stride: int) -> nn.Module:
        return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def _mindcv(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any], **args: Any) -> nn.Module:
    """MindCV's net: SAME pools after the stem and in the blocks."""
    return build_resnest(variant, pretrained, layers, kwargs, block=SamePoolBottleneck, stem_pool=SamePool, **args)


def _paddle(variant: str, pretrained: bool, layers: list[int], kwargs: dict[str, Any], **args: Any) -> nn.Module:
    """PaddleClas' net: average pools in the blocks that do not count their padding."""
    return build_resnest(variant, pretrained, layers, kwargs, block=ExclusivePoolBottleneck, **args)


@register
def resnest18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt(A)-18 of imgclsmob: basic blocks whose second convolution is a split attention."""
    return build_resnest('resnest18', pretrained, [2, 2, 2, 2], kwargs, block=SplitAttentionBasic, avd_first=True)


@register
def resnest152e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt(A)-152 of imgclsmob, a depth between the authors' 101 and 200."""
    return build_resnest('resnest152e', pretrained, [3, 8, 36, 3], kwargs, stem_width=64)


@register
def resnest14_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-14 of MindCV: `resnest14d` with SAME pools."""
    return _mindcv('resnest14_mindcv', pretrained, [1, 1, 1, 1], kwargs)


@register
def resnest50_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50 of MindCV: `resnest50d` with SAME pools."""
    return _mindcv('resnest50_mindcv', pretrained, [3, 4, 6, 3], kwargs)


@register
def resnest101_mindcv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-101 of MindCV: `resnest101e` with SAME pools."""
    return _mindcv('resnest101_mindcv', pretrained, [3, 4, 23, 3], kwargs, stem_width=64)


@register
def resnest50_paddle(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50 of PaddleClas: `resnest50d` with average pools that do not count their padding."""
    return _paddle('resnest50_paddle', pretrained, [3, 4, 6, 3], kwargs)


@register
def resnest50_1s1x64d_paddle(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Fast ResNeSt-50 of PaddleClas: `resnest50d_1s1x64d` with average pools that do not count their padding."""
    return _paddle('resnest50_1s1x64d_paddle', pretrained, [3, 4, 6, 3], kwargs, radix=1, avd_first=True)


@register
def resnest101_paddle(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-101 of PaddleClas: `resnest101e` with average pools that do not count their padding."""
    return _paddle('resnest101_paddle', pretrained, [3, 4, 23, 3], kwargs, stem_width=64)
