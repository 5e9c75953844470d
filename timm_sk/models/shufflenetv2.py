"""Torchvision's ShuffleNetV2 with units for depthwise convolutions and with the methods of timm's models.

Paper: "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (Ma, Zhang, Zheng, Sun, ECCV 2018,
arXiv:1807.11164). Layout, blocks and parameter names are torchvision's; the architectures are in `sk_mobile.py`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer, get_norm_layer
from torch import nn
from torchvision.models import shufflenetv2 as torchvision_shufflenetv2

from ..layers.folded_conv import fold_sequence, require_eval
from .depthwise import require_unit, selective_kernel, squeeze_excite
from .levels import LevelClassifier


def _refit(layers: nn.Sequential, *, unit: str, act_layer: LayerType, norm_layer: LayerType) -> nn.Sequential:
    """Give torchvision's layers other norms and activations, and a depthwise convolution among them its unit.

    What stays keeps its name, so the unit is called `sk` or `se` instead of taking a number.
    """
    refitted = nn.Sequential()
    depthwise = None  # the depthwise convolution whose norm comes next
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            depthwise = layer
            if unit == 'sk':
                selective = selective_kernel(layer, act_layer=act_layer, norm_layer=norm_layer, activate_branches=False)
                refitted.add_module('sk', selective)
            else:
                refitted.add_module(name, layer)
        elif isinstance(layer, nn.BatchNorm2d):
            if depthwise is None or unit != 'sk':
                refitted.add_module(name, get_norm_layer(norm_layer)(layer.num_features))
            if depthwise is not None and unit == 'se':
                refitted.add_module('se', squeeze_excite(depthwise, act_layer=act_layer))
            depthwise = None
        elif isinstance(layer, nn.ReLU):
            refitted.add_module(name, create_act_layer(act_layer, inplace=True))
        else:
            refitted.add_module(name, layer)
    return refitted


class ShuffleBlock(torchvision_shufflenetv2.InvertedResidual):
    """Torchvision's ShuffleNetV2 block whose depthwise convolutions are units.

    Input [B, inp, H, W], output [B, oup, ceil(H / stride), ceil(W / stride)].

    Args:
        inp: Channels of the input.
        oup: Channels of the output; at stride 1 those of the input.
        stride: 1, where half of the channels pass unchanged, or 2, where both branches see all of them.
        **layers: `unit`, `act_layer` and `norm_layer` of `ShuffleNetV2`.
    """

    def __init__(self, inp: int, oup: int, stride: int, **layers: Any) -> None:
        super().__init__(inp, oup, stride)
        self.branch1: nn.Sequential = _refit(self.branch1, **layers)
        self.branch2: nn.Sequential = _refit(self.branch2, **layers)

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions before them, where that is possible.

        Raises:
            ValueError: In train mode.
        """
        require_eval(*self.modules())
        fold_sequence(self.branch1)
        fold_sequence(self.branch2)


class ShuffleNetV2(LevelClassifier, torchvision_shufflenetv2.ShuffleNetV2):
    """Torchvision's ShuffleNetV2 with units for depthwise convolutions and the methods of timm's models.

    Input [B, in_chans, H, W], output [B, num_classes]. Modules that torchvision has too keep its parameter names and
    its initialisation.

    Args:
        stages_repeats: Blocks of the three stages.
        stages_out_channels: Channels of stem, stages and last convolution.
        num_classes: Number of classes; 0 for pooled features.
        in_chans: Channels of the images.
        output_stride: Only 32: a ShuffleNetV2 block with a stride has no form with dilation.
        global_pool: Pooling of `timm.layers.SelectAdaptivePool2d`, or '' for none.
        unit: What replaces the depthwise convolutions: 'sk', 'se' (squeeze-and-excitation after them) or 'plain'.
        act_layer: Activation class or timm's name for it.
        norm_layer: Norm class or timm's name for it.
        drop_rate: Dropout rate before the classifier.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: For another `output_stride` or `unit`.
    """

    levels = ('conv1', 'maxpool', 'stage2', 'stage3', 'stage4')  # with reductions 2, 4, 8, 16, 32
    stages = levels[2:]
    last = 'conv5'
    classifier = 'fc'

    def __init__(
        self,
        stages_repeats: Sequence[int],
        stages_out_channels: Sequence[int],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        unit: str = 'sk',
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_unit(unit)
        if output_stride != 32:
            raise ValueError(
                f'ShuffleNetV2 supports output_stride=32 only, got {output_stride}: its blocks with a stride have no '
                'form with dilation. Use sk_mobilenetv2_100 for strides 8 and 16.'
            )
        layers: dict[str, Any] = dict(unit=unit, act_layer=act_layer, norm_layer=norm_layer)
        super().__init__(
            list(stages_repeats), list(stages_out_channels), inverted_residual=partial(ShuffleBlock, **layers)
        )
        if in_chans != 3:
            self.conv1[0] = nn.Conv2d(in_chans, stages_out_channels[0], 3, stride=2, padding=1, bias=False)
        self.conv1: nn.Sequential = _refit(self.conv1, **layers)
        self.conv5: nn.Sequential = _refit(self.conv5, **layers)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = stages_out_channels[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = [
            dict(num_chs=channels, reduction=2 ** (level + 1), module=name)
            for level, (name, channels) in enumerate(
                zip(self.levels, [stages_out_channels[0], *stages_out_channels[:4]], strict=True)
            )
        ]
        self.to(device=device, dtype=dtype)
        self.reset_classifier(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameter groups: stem, stages or blocks, last convolution."""
        return dict(
            stem=r'^conv1',
            blocks=[(r'^stage(\d+)' if coarse else r'^stage(\d+)\.(\d+)', None), (r'^conv5', (99999,))],
        )
