"""ResNeSt on timm's ResNet trunk: timm's names, and the nets of the authors' ablation that timm lacks.

Paper: "ResNeSt: Split-Attention Networks" (Zhang et al., arXiv:2004.08955). In the names, d and e stand for deep stems
of width 32 and 64 with average pools in the shortcuts, and `_4s2x40d` for radix 4, cardinality 2 and width 40 with the
pool before the split attention (the authors' `resnest50_fast_4s2x40d`).
"""

from typing import Any

from torch import nn

from ..registry import register
from ._builder import build_model, family_cfgs
from .resnest_blocks import SplitAttentionBottleneck
from .resnet import StemPoolResNet

__all__ = ['SplitAttentionBottleneck', 'build_resnest']

default_cfgs = family_cfgs('resnest')


def build_resnest(
    variant: str,
    pretrained: bool,
    layers: list[int],
    kwargs: dict[str, Any],
    *,
    radix: int = 2,
    avd_first: bool = False,
    **trunk_args: Any,
) -> nn.Module:
    """Build a variant from its differences to the paper's 2s1x64d; the caller's `kwargs` win."""
    model_args = dict(
        block=SplitAttentionBottleneck,
        layers=layers,
        stem_type='deep',
        stem_width=32,
        avg_down=True,
        cardinality=1,
        base_width=64,
        block_args=dict(radix=radix, avd=True, avd_first=avd_first),
    )
    return build_model(StemPoolResNet, variant, pretrained, **{**model_args, **trunk_args, **kwargs})


def _resnest50d_fast(variant: str, pretrained: bool, kwargs: dict[str, Any], **width: int) -> nn.Module:
    """A net of the authors' ablation: 50 layers, the pool before the split attention."""
    return build_resnest(variant, pretrained, [3, 4, 6, 3], kwargs, avd_first=True, **width)


@register
def resnest14d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-14 of GluonCV, a depth that is not in the paper."""
    return build_resnest('resnest14d', pretrained, [1, 1, 1, 1], kwargs)


@register
def resnest26d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-26 of GluonCV, a depth that is not in the paper."""
    return build_resnest('resnest26d', pretrained, [2, 2, 2, 2], kwargs)


@register
def resnest50d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50 of the paper."""
    return build_resnest('resnest50d', pretrained, [3, 4, 6, 3], kwargs)


@register
def resnest101e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-101 of the paper."""
    return build_resnest('resnest101e', pretrained, [3, 4, 23, 3], kwargs, stem_width=64)


@register
def resnest200e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-200 of the paper."""
    return build_resnest('resnest200e', pretrained, [3, 24, 36, 3], kwargs, stem_width=64)


@register
def resnest269e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-269 of the paper."""
    return build_resnest('resnest269e', pretrained, [3, 30, 48, 8], kwargs, stem_width=64)


@register
def resnest50d_4s2x40d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 4, cardinality 2 and width 40."""
    return _resnest50d_fast('resnest50d_4s2x40d', pretrained, kwargs, radix=4, cardinality=2, base_width=40)


@register
def resnest50d_1s4x24d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 1, cardinality 4 and width 24."""
    return _resnest50d_fast('resnest50d_1s4x24d', pretrained, kwargs, radix=1, cardinality=4, base_width=24)


@register
def resnest50d_1s1x64d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 1, cardinality 1 and width 64."""
    return _resnest50d_fast('resnest50d_1s1x64d', pretrained, kwargs, radix=1, cardinality=1, base_width=64)


@register
def resnest50d_2s1x64d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 2, cardinality 1 and width 64."""
    return _resnest50d_fast('resnest50d_2s1x64d', pretrained, kwargs, radix=2, cardinality=1, base_width=64)


@register
def resnest50d_4s1x64d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 4, cardinality 1 and width 64."""
    return _resnest50d_fast('resnest50d_4s1x64d', pretrained, kwargs, radix=4, cardinality=1, base_width=64)


@register
def resnest50d_1s2x40d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 1, cardinality 2 and width 40."""
    return _resnest50d_fast('resnest50d_1s2x40d', pretrained, kwargs, radix=1, cardinality=2, base_width=40)


@register
def resnest50d_2s2x40d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeSt-50-fast of the authors' ablation with radix 2, cardinality 2 and width 40."""
    return _resnest50d_fast('resnest50d_2s2x40d', pretrained, kwargs, radix=2, cardinality=2, base_width=40)
