"""Units that differ from the papers' in one step, as other implementations and ablations have them."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from . import pooled_norm
from .conv_norm_act import ConvNormAct
from .selective_kernel import SelectiveKernel, SelectiveKernelAttn
from .split_attention import SplitAttention


class SigmoidAttn(SelectiveKernelAttn):
    """Attention whose last layer has a bias, and whose logits are sigmoids (Holocron's `SKAttention`).

    Since a softmax over the branches follows, no branch can weigh more than e times another.
    """

    def __init__(self, channels: int, num_paths: int = 2, attn_channels: int = 32, **layers: Any) -> None:
        super().__init__(channels, num_paths, attn_channels, **layers)
        weight = self.fc_select.weight
        self.fc_select.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device, dtype=weight.dtype))

    def forward(self, fused: Tensor) -> Tensor:
        return super().forward(fused).sigmoid()


class SigmoidSelectiveKernel(SelectiveKernel):
    """Selective-kernel unit of Holocron, with `SigmoidAttn`."""

    def make_attention(self, channels: int, num_paths: int, attn_channels: int, **layers: Any) -> nn.Module:
        return SigmoidAttn(channels, num_paths, attn_channels, **layers)


class StackedSelectiveKernel(SelectiveKernel):
    """Selective-kernel unit whose kernels above 3 are stacks of 3x3 convolutions: two for 5x5, three for 7x7.

    Each of the stack has its norm and activation; the last has the stride, so that the stack sees what the large kernel
    sees. `keep_3x3` has no meaning here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'keep_3x3': False})

    def make_path(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, **conv_kwargs: Any
    ) -> nn.Module:
        count = (kernel_size - 1) // 2
        return nn.Sequential(
            *(
                ConvNormAct(
                    in_channels if index == 0 else out_channels,
                    out_channels,
                    3,
                    stride=stride if index == count - 1 else 1,
                    **conv_kwargs,
                )
                for index in range(count)
            )
        )


class RadixMajorSplitAttention(SplitAttention):
    """Split attention of Lucid (versions 1 and 2).

    The last layer's channels are sorted by branch whatever the cardinality, so that with groups a branch's weights come
    from other groups than its features. A batch of 1 is accepted in train mode, where the norm leaves only its bias.
    """

    def by_branch(self, expanded: Tensor) -> Tensor:
        return expanded.unflatten(1, (self.radix, -1))

    def forward(self, x: Tensor) -> Tensor:
        branches = self.split(x)  # R x [B, C, H', W']
        fused = ops.fuse(branches)
        attended = pooled_norm.at_least_two(fused) if self.training else fused
        return ops.select(branches, self.logits(attended)[: fused.shape[0]], self.gate)
