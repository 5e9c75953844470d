"""The residual blocks that put split attention into timm's ResNet trunk.

They take what `timm.models.ResNet` passes to a block and have the parameter names of `timm/models/resnest.py`.
Different on purpose: stochastic depth acts on the residual branch, the activation reaches the attention, and in a
dilated stage the blocks are those of the authors (zhanghang1989/ResNeSt, resnest/torch/models/resnet.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer, get_norm_layer
from torch import Tensor, nn

from ..layers import SplitAttention
from ..layers.conv_sequence import conv_norm
from ..layers.folded_conv import fold_norm
from .folded_blocks import FoldedSplitAttentionBottleneck
from .sk_blocks import ResidualBlock, zero_weight


class SplitAttentionBottleneck(ResidualBlock):
    """Bottleneck residual block whose 3x3 convolution is a split attention: the block of ResNeSt.

    Input [B, inplanes, H, W], output [B, 4 * planes, H / stride, W / stride].

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the output's channels.
        stride: Stride of the block.
        downsample: What the trunk puts into the shortcut; its pool is left out where a dilated stage begins.
        radix: R, the branches of the split attention.
        cardinality: K, its groups.
        base_width: Width of a group where `planes` is 64.
        avd: Where the resolution falls, or would without dilation, pool the average of 3x3 instead of giving the
            convolution the stride.
        avd_first: Pool before the split attention instead of after it.
        is_first: Pool in this block in any case.
        reduce_first: Only 1.
        dilation: Dilation of the stage.
        first_dilation: Dilation of this block, where it is another.
        act_layer: Activation class or timm's name for it.
        norm_layer: Norm class or timm's name for it.
        attn_layer: Attention after the last convolution, such as 'se'.
        aa_layer: Only None: the average pools take its place.
        drop_block: Makes the layer between the split attention's norm and activation.
        drop_path: Stochastic depth of the residual branch.
        device: Where the parameters are made.
        dtype: Their floating-point type.

    Raises:
        ValueError: If `reduce_first` or `aa_layer` are given, or `SplitAttention` refuses the numbers.
    """

    expansion = 4
    first_kernel_size = 1
    folded = FoldedSplitAttentionBottleneck

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        radix: int = 1,
        cardinality: int = 1,
        base_width: int = 64,
        avd: bool = False,
        avd_first: bool = False,
        is_first: bool = False,
        reduce_first: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        attn_layer: LayerType | None = None,
        aa_layer: type[nn.Module] | None = None,
        drop_block: Callable[[], nn.Module] | None = None,
        drop_path: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if reduce_first != 1 or aa_layer is not None:
            raise ValueError(
                f'ResNeSt takes neither block_reduce_first nor aa_layer, got {reduce_first} and {aa_layer}: leave them '
                'out; its average pools (avd) are there against aliasing.'
            )
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        norm = get_norm_layer(norm_layer)
        width = int(planes * base_width / 64) * cardinality
        out_planes = planes * self.expansion
        begins_dilated_stage = first_dilation is not None and first_dilation != dilation
        pools = avd and (stride > 1 or is_first or begins_dilated_stage)

        self.conv1 = nn.Conv2d(
            inplanes, width, self.first_kernel_size, padding=self.first_kernel_size // 2, bias=False, **factory
        )
        self.bn1 = norm(width, **factory)
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.avd_first = self.make_pool(stride) if pools and avd_first else nn.Identity()
        self.conv2 = self.make_unit(
            width,
            stride=1 if pools else stride,
            dilation=first_dilation or dilation,
            groups=cardinality,
            radix=radix,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_layer=drop_block,
            **factory,
        )
        self.avd_last = self.make_pool(stride) if pools and not avd_first else nn.Identity()
        self.add_expansion(width, out_planes, norm, **factory)
        self.add_tail(
            out_planes,
            downsample=_without_pool(downsample) if begins_dilated_stage else downsample,
            act_layer=act_layer,
            attn_layer=attn_layer,
            drop_path=drop_path,
            **factory,
        )

    def make_unit(self, channels: int, **unit_kwargs: Any) -> SplitAttention:
        """Make the split attention from its arguments; a step for subclasses to override."""
        return SplitAttention(channels, **unit_kwargs)

    def make_pool(self, stride: int) -> nn.Module:
        """Make the average pool of avd, which counts the padding; a step for subclasses to override."""
        return nn.AvgPool2d(3, stride, padding=1)

    def add_expansion(self, width: int, out_planes: int, norm: Callable[..., nn.Module], **factory: Any) -> None:
        """Add what follows the split attention; a step for subclasses to override."""
        self.conv3: nn.Module = nn.Conv2d(width, out_planes, kernel_size=1, bias=False, **factory)
        self.bn3: nn.Module = norm(out_planes, **factory)

    def zero_init_last(self) -> None:
        zero_weight(self.bn3)

    def residual(self, x: Tensor) -> Tensor:
        return conv_norm(self.attend(conv_norm(x, self.conv1, self.bn1)), self.conv3, self.bn3)

    def attend(self, x: Tensor) -> Tensor:
        """What lies between the first norm and the last convolution."""
        return self.avd_last(self.conv2(self.avd_first(self.act1(x))))

    def fold_own(self) -> None:
        fold_norm(self, 'conv1', 'bn1', act='act1')
        fold_norm(self, 'conv3', 'bn3')


class SplitAttentionBasic(SplitAttentionBottleneck):
    """Basic residual block whose second 3x3 convolution is a split attention without activation before it.

    Input [B, inplanes, H, W], output [B, planes, H / stride, W / stride]. That of imgclsmob's ResNeSt(A)-18
    (pytorchcv/models/resnesta.py), which pools before the split attention. Arguments as for
    `SplitAttentionBottleneck`.

    Raises:
        ValueError: If `cardinality` or `base_width` are not those of a plain basic block, or as there.
    """

    expansion = 1
    first_kernel_size = 3

    def make_unit(self, channels: int, **unit_kwargs: Any) -> SplitAttention:
        unit = super().make_unit(channels, **unit_kwargs)
        unit.act0 = nn.Identity()
        return unit

    def add_expansion(self, width: int, out_planes: int, norm: Callable[..., nn.Module], **factory: Any) -> None:
        if width != out_planes:
            raise ValueError(
                'A basic block needs cardinality=1 and base_width=64, got others: use a bottleneck variant for groups '
                'and other widths.'
            )
        self.conv3 = nn.Identity()
        self.bn3 = nn.Identity()

    def zero_init_last(self) -> None:
        zero_weight(self.conv2.bn0)


def _without_pool(downsample: nn.Module | None) -> nn.Module | None:
    """Leave the pool out of a shortcut that keeps the resolution; its parameters keep their names."""
    if not isinstance(downsample, nn.Sequential):
        return downsample
    return nn.Sequential(*(nn.Identity() if isinstance(layer, nn.AvgPool2d) else layer for layer in downsample))
