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
from timm.layers import (
    DropPath,
    LayerNorm2d,
    LayerType,
    calculate_drop_path_rates,
    create_act_layer,
    get_norm_layer,
)
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..layers.folded_conv import fold_norm
from ..layers.large_selective_kernel import LargeSelectiveKernel
from ..registry import register
from ._builder import build_model, family_cfgs
from .levels import LevelClassifier

__all__ = ['LSKNet']

default_cfgs = family_cfgs('lsknet')

_PARTS = ('patch_embed', 'block', 'norm')  # of a stage, with its number


class PatchEmbed(nn.Module):
    """A convolution with a stride, and a norm: [B, C, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, in_chans: int, channels: int, kernel_size: int, stride: int, norm_layer: LayerType) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = get_norm_layer(norm_layer)(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))

    def reparameterize(self) -> None:
        """Fold the norm into the convolution.

        Raises:
            ValueError: In train mode.
        """
        fold_norm(self, 'proj', 'norm')


class Attention(nn.Module):
    """Selection between two 1x1 convolutions, with a shortcut: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, act_layer: LayerType) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.act = create_act_layer(act_layer)
        self.spatial_gating_unit = LargeSelectiveKernel(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.spatial_gating_unit(self.act(self.proj_1(x))))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with a depthwise 3x3 convolution between them: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, hidden: int, act_layer: LayerType, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=depthwise))
        self.act = create_act_layer(act_layer)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.dwconv(self.fc1(x))))
        return self.drop2(self.fc2(x))


class LSKBlock(nn.Module):
    """Attention and MLP, each after a norm, scaled per channel, with a shortcut: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: float,
        act_layer: LayerType,
        norm_layer: LayerType,
        proj_drop: float,
        drop_path: float,
        init_values: float,
    ) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), init_values))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), init_values))
        self.norm1 = get_norm_layer(norm_layer)(channels)
        self.norm2 = get_norm_layer(norm_layer)(channels)
        self.attn = Attention(channels, act_layer)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp = ConvMlp(channels, int(channels * mlp_ratio), act_layer, proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class LSKNet(LevelClassifier):
    """LSKNet with a classifier and the methods of timm's models.

    Input [B, in_chans, H, W], output [B, num_classes].

    Args:
        channels: Channels of the four stages.
        depths: Blocks of the four stages.
        mlp_ratios: Channels inside of each stage's MLPs as a multiple of the stage's channels.
        num_classes: Classes; 0 for pooled features.
        in_chans: Channels of the image.
        output_stride: 32, the only one: the selection of a stage has no form with dilation.
        global_pool: Pooling that `timm.layers.SelectAdaptivePool2d` knows, or '' for none.
        act_layer: Activation class or timm's name for it.
        norm_layer: Norm class or timm's name for it, in patch embeddings and blocks.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout in the MLPs.
        drop_path_rate: Probability of dropping the last block's attention or MLP; rises linearly from 0.
        init_values: Initial scale of attention and MLP.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: For another `output_stride`.
    """

    levels = ('norm1', 'norm2', 'norm3', 'norm4')  # with reductions 4, 8, 16, 32
    classifier = 'head'

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        *,
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        act_layer: LayerType = nn.GELU,
        norm_layer: LayerType = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init_values: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise ValueError(f'LSKNet supports output_stride=32 only, got {output_stride}: it has no dilated form.')
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = channels[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = [
            dict(num_chs=width, reduction=4 * 2**stage, module=f'norm{stage + 1}')
            for stage, width in enumerate(channels)
        ]
        widths = [in_chans, *channels]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def make_stage(stage: int) -> tuple[PatchEmbed, nn.Sequential, LayerNorm2d]:
            width = channels[stage]
            kernel_size, stride = (3, 2) if stage else (7, 4)
            blocks = [
                LSKBlock(
                    width,
                    mlp_ratio=mlp_ratios[stage],
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                    proj_drop=proj_drop_rate,
                    drop_path=rate,
                    init_values=init_values,
                )
                for rate in rates[stage]
            ]
            embed = PatchEmbed(widths[stage], width, kernel_size, stride, norm_layer)
            return embed, nn.Sequential(*blocks), LayerNorm2d(width, eps=1e-6)

        self.patch_embed1, self.block1, self.norm1 = make_stage(0)
        self.patch_embed2, self.block2, self.norm2 = make_stage(1)
        self.patch_embed3, self.block3, self.norm3 = make_stage(2)
        self.patch_embed4, self.block4, self.norm4 = make_stage(3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        self.to(device=device, dtype=dtype)
        self.reset_classifier(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameter groups: the first patch embedding, then stages or blocks."""
        stages = [(r'^(?:patch_embed|block|norm)(\d+)', None)]
        blocks = [(r'^block(\d+)\.(\d+)', None), (r'^patch_embed(\d+)', (0,)), (r'^norm(\d+)', (99999,))]
        return dict(stem=r'^patch_embed1', blocks=stages if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: the scales of the blocks."""
        return {name for name, _ in self.named_parameters() if 'layer_scale' in name}

    def run_level(self, name: str, x: Tensor) -> Tensor:
        """Run the stage that ends with a norm."""
        stage = name.removeprefix('norm')
        embed, blocks, norm = (self.get_submodule(f'{part}{stage}') for part in _PARTS)
        x = embed(x)
        return norm(checkpoint_seq(blocks, x) if self.grad_checkpointing else blocks(x))

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Remove the stages after the last of the given ones, and return their numbers as non-negative ones."""
        taken = super().prune_intermediate_layers(*args, **kwargs)
        for stage in range(max(taken) + 2, 5):
            for part in _PARTS:
                setattr(self, f'{part}{stage}', nn.Sequential())
        return taken


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    feature_cfg = dict(out_indices=(0, 1, 2, 3))
    return build_model(LSKNet, variant, pretrained, **{'feature_cfg': feature_cfg, **kwargs})


@register
def lsknet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSKNet-T: 4.2 million parameters with 1000 classes."""
    model_args = dict(channels=(32, 64, 160, 256), depths=(3, 3, 5, 2))
    return _build('lsknet_t', pretrained, **{**model_args, **kwargs})


@register
def lsknet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSKNet-S: 14.4 million parameters with 1000 classes."""
    model_args = dict(channels=(64, 128, 320, 512), depths=(2, 2, 4, 2))
    return _build('lsknet_s', pretrained, **{**model_args, **kwargs})
