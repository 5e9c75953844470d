"""Lightweight selective-kernel networks: ShuffleNetV2 and MobileNetV2 with SK units for depthwise convolutions.

Paper: section 4.2 of "Selective Kernel Networks" (Li, Wang, Hu, Yang, CVPR 2019, arXiv:1903.06586), which puts SK units
into ShuffleNetV2. The nets are torchvision's ShuffleNetV2 and timm's MobileNetV2, and keep their parameter names. Each
depthwise 3x3 convolution with its norm becomes a unit of two depthwise branches, 3x3 and 3x3 with dilation 2, that see
all channels. The paper has no layer table; this project's choices:

- every depthwise convolution is replaced, also the one in the shortcut of a ShuffleNetV2 block with a stride;
- a branch has the activation that follows the depthwise convolution in the original net: none in ShuffleNetV2, ReLU6 in
  MobileNetV2; the attention always has one;
- the attention's width is the paper's formula max(C / r, L) with its defaults r = 16 and L = 32, so 32 in all units but
  MobileNetV2's with 576 and 960 channels, which have 36 and 60.

For comparison, `unit='se'` has squeeze-and-excitation of the same width after the single depthwise convolution and
`unit='plain'` the original net.
"""

from functools import partial
from typing import Any

import timm.models
from timm.layers import LayerType
from torch import nn

from ..registry import register
from ._builder import build_model, family_cfgs
from .depthwise import require_unit, selective_kernel, squeeze_excite
from .shufflenetv2 import ShuffleNetV2

__all__ = ['mobilenetv2']

default_cfgs = family_cfgs('sk_mobile')


def mobilenetv2(
    *,
    unit: str = 'sk',
    pad_type: str = '',
    act_layer: LayerType | None = None,
    norm_layer: LayerType | None = None,
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build timm's MobileNetV2 1.0 with units for depthwise convolutions.

    An SK unit takes the place of `conv_dw` in timm's block, and the norm after it becomes an identity. Units keep
    PyTorch's default initialisation, the rest has timm's.

    timm's blocks hold norm and activation in one module: to synchronise the norms, use
    `timm.layers.convert_sync_batchnorm`, since torch's own conversion would drop the activations outside the units.

    Args:
        unit: What replaces the depthwise convolutions: 'sk', 'se' (squeeze-and-excitation after them) or 'plain'.
        pad_type: '' for symmetric padding.
        act_layer: Activation class or timm's name for it; None for ReLU6.
        norm_layer: Norm class or timm's name for it; None for BatchNorm2d.
        bn_momentum: Momentum of the default norm; None for PyTorch's.
        bn_eps: Epsilon of the default norm; None for PyTorch's.
        **kwargs: Further arguments of `timm.models.EfficientNet`.

    Raises:
        ValueError: For another `unit`, or a `pad_type` that depends on the image's size.
    """
    require_unit(unit)
    if pad_type:
        raise ValueError(
            f'The branches of an SK unit are padded symmetrically, got pad_type="{pad_type}": leave it out.'
        )
    bn_args: dict[str, Any] = {
        key: value for key, value in (('momentum', bn_momentum), ('eps', bn_eps)) if value is not None
    }
    act_layer = act_layer or 'relu6'
    norm_layer = norm_layer or partial(nn.BatchNorm2d, **bn_args)
    model = timm.models.mobilenetv2_100(act_layer=act_layer, norm_layer=norm_layer, **kwargs)
    for block in (block for stage in model.blocks for block in stage):
        if unit == 'sk':
            block.conv_dw = selective_kernel(
                block.conv_dw, act_layer=act_layer, norm_layer=norm_layer, activate_branches=True
            )
            # an inverted residual has an expansion, and its norm, before the depthwise convolution
            setattr(block, 'bn2' if hasattr(block, 'conv_pwl') else 'bn1', nn.Identity())
        elif unit == 'se':
            block.se = squeeze_excite(block.conv_dw, act_layer=act_layer)
    return model


@register
def sk_shufflenetv2_x0_5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 0.5x with SK units for its depthwise convolutions."""
    model_args = dict(stages_repeats=[4, 8, 4], stages_out_channels=[24, 48, 96, 192, 1024])
    return build_model(ShuffleNetV2, 'sk_shufflenetv2_x0_5', pretrained, **{**model_args, **kwargs})


@register
def sk_shufflenetv2_x1_0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 1.0x with SK units for its depthwise convolutions: the paper's lightweight net."""
    model_args = dict(stages_repeats=[4, 8, 4], stages_out_channels=[24, 116, 232, 464, 1024])
    return build_model(ShuffleNetV2, 'sk_shufflenetv2_x1_0', pretrained, **{**model_args, **kwargs})


@register
def sk_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 1.0 of timm with SK units for its depthwise convolutions."""
    feature_cfg = dict(flatten_sequential=True)  # timm's stages are two levels deep
    return build_model(mobilenetv2, 'sk_mobilenetv2_100', pretrained, **{'feature_cfg': feature_cfg, **kwargs})
