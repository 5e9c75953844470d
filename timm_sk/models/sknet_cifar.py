"""Selective-kernel networks for the 32x32 pictures of CIFAR, on a trunk of three stages.

Paper: section 4.3 of "Selective Kernel Networks" (arXiv:1903.06586), whose SKNet-29 follows ResNeXt-29 16x32d (Table 3
there; the layout of the three stages is that of "Aggregated Residual Transformations", arXiv:1611.05431, section 5.2).
"""

from typing import Any

import torch
from timm.models import ResNet, checkpoint_seq
from torch import Tensor, nn

from ..registry import register
from ._builder import family_cfgs
from .resnet import build_resnet
from .sk_blocks import SelectiveKernelBottleneck

default_cfgs = family_cfgs('sknet_cifar')

STAGES = ('layer1', 'layer2', 'layer3')
STEM_CHANNELS = 64


class CifarResNet(ResNet):
    """timm's ResNet with a stem of one 3x3 convolution, no stem pool, and three stages of stride 1, 2 and 2.

    Input [B, in_chans, H, W]; features at reductions 1 (stem), 1, 2 and 4.

    Args:
        block: Residual block class.
        layers: Blocks of each of the three stages.
        in_chans: Channels of the input.
        output_stride: 2 or 4; at 2 the last stage has dilations for its stride.
        device: Where the parameters are made.
        dtype: Their floating-point type.
        **kwargs: As for `timm.models.ResNet`; the arguments of its stem and pool have no meaning here.

    Raises:
        ValueError: If there are not three stages, or the output stride is another.
    """

    def __init__(
        self,
        block: Any,
        layers: list[int],
        *,
        in_chans: int = 3,
        output_stride: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if len(layers) != len(STAGES):
            raise ValueError(f'The CIFAR trunk has three stages, got layers={layers}: give three numbers.')
        if output_stride not in (2, 4):
            raise ValueError(f'The CIFAR trunk has output stride 2 or 4, got {output_stride}: choose one of them.')
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        # timm's stem divides the size by 4 before the first stage, ours by 1
        strides = dict(output_stride=4 * output_stride)
        super().__init__(block, layers, in_chans=in_chans, channels=(64, 128, 256), **strides, **factory, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, STEM_CHANNELS, 3, padding=1, bias=False, **factory)
        self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode='fan_out', nonlinearity='relu')
        for info in self.feature_info:
            info['reduction'] = max(1, info['reduction'] // 4)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing:
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """Features of the stem (0) and the stages (1 to 3); arguments as for `timm.models.ResNet`."""
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt must be "NCHW", got "{output_fmt}".')
        taken = _take(indices)
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        for index in range(len(STAGES) + 1):
            if index:
                x = self._run_stage(index, x)
            if index in taken:
                intermediates.append(x)
            if stop_early and index == max(taken):
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that the features at `indices` do not need; arguments as for `timm.models.ResNet`."""
        taken = _take(indices)
        last = max(taken)
        for index in range(last + 1, len(STAGES) + 1):
            setattr(self, STAGES[index - 1], nn.Sequential())
        if last < len(STAGES):
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if prune_head or last < len(STAGES):
            self.reset_classifier(0, '')
        return taken

    def _run_stage(self, index: int, x: Tensor) -> Tensor:
        stage = getattr(self, STAGES[index - 1])
        return checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)


def _take(indices: int | list[int] | None) -> list[int]:
    """Spell out which of the four features are meant: all (None), the last so many (int), or these (list)."""
    count = len(STAGES) + 1
    if indices is None:
        indices = count
    taken = list(range(count - indices, count)) if isinstance(indices, int) else [i % count for i in indices]
    if not taken or min(taken) < 0 or (not isinstance(indices, int) and not all(-count <= i < count for i in indices)):
        raise ValueError(f'The CIFAR trunk has features 0 (stem) to {count - 1}, got indices {indices}.')
    return taken


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
