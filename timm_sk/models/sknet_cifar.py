"""Selective-kernel networks for the 32x32 images of CIFAR, on a trunk of three stages.

Paper: section 4.3 of "Selective Kernel Networks" (arXiv:1903.06586), whose SKNet-29 follows ResNeXt-29 16x32d (Table 3
there; the layout of the three stages is that of "Aggregated Residual Transformations", arXiv:1611.05431, section 5.2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import ResNet
from torch import Tensor, nn

from ..registry import register
from ._builder import family_cfgs
from .levels import LevelFeatures
from .resnet import build_resnet
from .sk_blocks import SelectiveKernelBottleneck

default_cfgs = family_cfgs('sknet_cifar')


class CifarResNet(LevelFeatures, ResNet):
    """timm's ResNet with a stem of one 3x3 convolution, no stem pool, and three stages of stride 1, 2 and 2.

    Input [B, in_chans, H, W]; features at reductions 1 (stem), 1, 2 and 4.

    Args:
        block: Residual block class.
        layers: Number of blocks in each of the three stages.
        in_chans: Channels of the images.
        channels: Channels of the stages' output, divided by the block's expansion.
        output_stride: 2 or 4; at 2 the last stage is dilated instead of strided.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
        **kwargs: Further arguments of `timm.models.ResNet`; those of its stem and pool have no effect.

    Raises:
        ValueError: For another number of stages or another output stride.
    """

    levels = ('act1', 'layer1', 'layer2', 'layer3')
    stages = levels[1:]
    bn1: nn.Module
    act1: nn.Module

    def __init__(
        self,
        block: Any,
        layers: list[int],
        *,
        in_chans: int = 3,
        channels: Sequence[int] = (64, 128, 256),
        output_stride: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if len(layers) != len(self.stages):
            raise ValueError(f'The CIFAR trunk has three stages, got layers={layers}: give three numbers.')
        if output_stride not in (2, 4):
            raise ValueError(f'The CIFAR trunk has output stride 2 or 4, got {output_stride}: choose one of them.')
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        # timm's stem divides the size by 4 before the first stage, ours by 1
        strides = dict(output_stride=4 * output_stride)
        super().__init__(block, layers, in_chans=in_chans, channels=tuple(channels), **strides, **factory, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False, **factory)
        self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode='fan_out', nonlinearity='relu')
        for info in self.feature_info:
            info['reduction'] = max(1, info['reduction'] // 4)

    def run_level(self, name: str, x: Tensor) -> Tensor:
        if name == 'act1':
            return self.act1(self.bn1(self.conv1(x)))
        return super().run_level(name, x)


@register
def sknet29_16x32d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet-29 for CIFAR: SK[M=2, G=32, r=16] with L=32, in the widths of ResNeXt-29 16x32d.

    The paper prints 27.7 M parameters and gives no table of the layers; this reading of it has 28.3 M.
    """
    sk_kwargs = dict(kernel_size=[3, 5], groups=32, rd_ratio=1 / 16, rd_divisor=32, keep_3x3=True, split_input=False)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[3, 3, 3],
        cardinality=16,
        base_width=32,
        block_args=dict(sk_kwargs=sk_kwargs),
        feature_cfg=dict(out_indices=(0, 1, 2, 3)),
    )
    return build_resnet('sknet29_16x32d', pretrained, model_args, kwargs, trunk=CifarResNet)


@register
def sknet17_1x32d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Five blocks with SK[M=2, G=1, r=16], L=32 and a quarter of SKNet-29's channels, for training on a CPU."""
    sk_kwargs = dict(kernel_size=[3, 5], rd_ratio=1 / 16, rd_divisor=32, keep_3x3=True, split_input=False)
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=[1, 2, 2],
        channels=(16, 32, 64),
        base_width=128,  # of 64 channels, so 32 of the first stage's 16
        block_args=dict(sk_kwargs=sk_kwargs),
        feature_cfg=dict(out_indices=(0, 1, 2, 3)),
    )
    return build_resnet('sknet17_1x32d', pretrained, model_args, kwargs, trunk=CifarResNet)
