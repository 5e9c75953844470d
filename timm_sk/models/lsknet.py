"""LSKNet: backbones for remote sensing with selection by position.

Papers: "Large Selective Kernel Network for Remote Sensing Object Detection" (Li, Hou, Zheng, Cheng, Yang, Li, ICCV
2023, arXiv:2303.09030) and "LSKNet: A Foundation Lightweight Backbone for Remote Sensing" (arXiv:2403.11735). Parameter
names are those of the makers' checkpoints. A stage is a patch embedding, blocks and a LayerNorm, whose output is both
the stage's feature map and the next stage's input. The classifier sees its mean over the positions.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, calculate_drop_path_rates
from torch import Tensor, nn

from ..layers.folded_conv import fold_sequence
from ..layers.large_selective_kernel import LargeSelectiveKernel
from ..registry import register
from ._builder import build_model, family_cfgs
from .levels import LevelClassifier

__all__ = ['LSKNet']

default_cfgs = family_cfgs('lsknet')


class PatchEmbed(nn.Sequential):
    """A convolution with a stride, and a norm: [B, C, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, in_chans: int, channels: int, kernel_size: int, stride: int) -> None:
        proj = nn.Conv2d(in_chans, channels, kernel_size, stride=stride, padding=kernel_size // 2)
        super().__init__(OrderedDict(proj=proj, norm=nn.BatchNorm2d(channels)))

    def reparameterize(self) -> None:
        """Fold the norm into the convolution; a ValueError in train mode."""
        fold_sequence(self)


class Attention(nn.Module):
    """Selection between two 1x1 convolutions, with a shortcut: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.act = nn.GELU()
        self.spatial_gating_unit = LargeSelectiveKernel(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.spatial_gating_unit(self.act(self.proj_1(x))))


def _mlp(channels: int, hidden: int, drop: float) -> nn.Sequential:
    """Two 1x1 convolutions with a depthwise 3x3 convolution between them: [B, C, H, W] -> [B, C, H, W]."""
    depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
    layers = dict(
        fc1=nn.Conv2d(channels, hidden, 1),
        dwconv=nn.Sequential(OrderedDict(dwconv=depthwise)),
        act=nn.GELU(),
        drop1=nn.Dropout(drop),
        fc2=nn.Conv2d(hidden, channels, 1),
        drop2=nn.Dropout(drop),
    )
    return nn.Sequential(OrderedDict(layers))


class LSKBlock(nn.Module):
    """Attention and MLP, each after a norm, scaled per channel, with a shortcut: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, hidden: int, drop: float, drop_path: float) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), 1e-2))
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.attn = Attention(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp = _mlp(channels, hidden, drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class LSKNet(LevelClassifier):
    """LSKNet with a classifier and the methods of timm's models. Its stages cannot be dilated.

    Input [B, in_chans, H, W], output [B, num_classes].

    Args:
        channels: Channels of the four stages.
        depths: Blocks of the four stages.
        num_classes: Classes; 0 for pooled features.
        in_chans: Channels of the image.
        global_pool: Pooling that `timm.layers.SelectAdaptivePool2d` knows, or '' for none.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout in the MLPs.
        drop_path_rate: Probability of dropping the last block's attention or MLP; rises linearly from 0.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
    """

    levels = ('norm1', 'norm2', 'norm3', 'norm4')  # with reductions 4, 8, 16, 32
    stages = ('block1', 'block2', 'block3', 'block4')
    classifier = 'head'

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = channels[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = []
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for stage, width in enumerate(channels):
            before, kernel_size, stride = (channels[stage - 1], 3, 2) if stage else (in_chans, 7, 4)
            hidden = width * (8, 8, 4, 4)[stage]
            blocks = [LSKBlock(width, hidden, proj_drop_rate, rate) for rate in rates[stage]]
            embed, block, norm = self.modules_of(self.levels[stage])
            self.add_module(embed, PatchEmbed(before, width, kernel_size, stride))
            self.add_module(block, nn.Sequential(*blocks))
            self.add_module(norm, LayerNorm2d(width, eps=1e-6))
            self.feature_info.append(dict(num_chs=width, reduction=4 * 2**stage, module=norm))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        self.to(device=device, dtype=dtype)
        self.reset_classifier(num_classes, global_pool)

    def modules_of(self, level: str) -> tuple[str, ...]:
        """Names of the modules of a stage, which ends with a norm."""
        stage = level.removeprefix('norm')
        return f'patch_embed{stage}', f'block{stage}', level

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameter groups: the first patch embedding, then stages or blocks."""
        stages = [(r'^(?:patch_embed|block|norm)(\d+)', None)]
        blocks = [(r'^block(\d+)\.(\d+)', None), (r'^patch_embed(\d+)', (0,)), (r'^norm(\d+)', (99999,))]
        return dict(stem=r'^patch_embed1', blocks=stages if coarse else blocks)


def _lsknet(variant: str, pretrained: bool, kwargs: dict[str, Any], **model_args: Any) -> nn.Module:
    feature_cfg = dict(out_indices=(0, 1, 2, 3))
    return build_model(LSKNet, variant, pretrained, **{'feature_cfg': feature_cfg, **model_args, **kwargs})


@register
def lsknet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSKNet-T: 4.2 million parameters with 1000 classes."""
    return _lsknet('lsknet_t', pretrained, kwargs, channels=(32, 64, 160, 256), depths=(3, 3, 5, 2))


@register
def lsknet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSKNet-S: 14.4 million parameters with 1000 classes."""
    return _lsknet('lsknet_s', pretrained, kwargs, channels=(64, 128, 320, 512), depths=(2, 2, 4, 2))
