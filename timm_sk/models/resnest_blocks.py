"""The residual blocks that put split attention into timm's ResNet trunk.

Their parameters have the names of `timm/models/resnest.py`. Different on purpose: stochastic depth acts on the residual
branch, the activation reaches the attention, and in a dilated stage the blocks are those of the authors
(zhanghang1989/ResNeSt, resnest/torch/models/resnet.py).
"""

from collections.abc import Callable
from typing import Any

from timm.layers import create_act_layer, get_norm_layer
from torch import Tensor, nn

from ..layers import SplitAttention
from ..layers.conv_sequence import conv_norm
from ..layers.folded_conv import fold_norm
from .residual_block import BlockArguments, ResidualBlock


class SplitAttentionBottleneck(ResidualBlock):
    """Bottleneck residual block whose 3x3 convolution is a split attention: the block of ResNeSt.

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the output's channels.
        stride: Stride of the block.
        downsample: Modules of the shortcut; a pool among them is left out where a dilated stage begins.
        radix: R, the number of branches of the split attention.
        avd: Average pooling (3x3) instead of a strided convolution, where the resolution falls or would without
            dilation.
        avd_first: Pool before the split attention instead of after it.
        is_first: Pool in this block in any case.
        **block_args: `BlockArguments`, without `reduce_first` and `aa_layer`.

    Raises:
        ValueError: If `reduce_first` or `aa_layer` is given, or an argument is invalid for `SplitAttention`.
    """

    expansion = 4
    order = ('conv1', 'bn1', 'act1', 'avd_first', 'conv2', 'avd_last', 'conv3', 'bn3')
    last_norm = 'bn3'
    first_kernel_size = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        radix: int = 1,
        avd: bool = False,
        avd_first: bool = False,
        is_first: bool = False,
        **block_args: Any,
    ) -> None:
        super().__init__()
        args = BlockArguments(**block_args)
        if args.reduce_first != 1 or args.aa_layer is not None:
            raise ValueError(
                'ResNeSt takes neither block_reduce_first nor aa_layer, got '
                f'{args.reduce_first} and {args.aa_layer}: omit them; average pooling (avd) prevents aliasing.'
            )
        norm = get_norm_layer(args.norm_layer)
        width = int(planes * args.base_width / 64) * args.cardinality
        out_planes = planes * self.expansion
        begins_dilated_stage = args.first_dilation is not None and args.first_dilation != args.dilation
        pools = avd and (stride > 1 or is_first or begins_dilated_stage)

        size = self.first_kernel_size
        self.conv1 = nn.Conv2d(inplanes, width, size, padding=size // 2, bias=False, **args.factory)
        self.bn1 = norm(width, **args.factory)
        self.act1 = create_act_layer(args.act_layer, inplace=True)
        self.avd_first = self.make_pool(stride) if pools and avd_first else nn.Identity()
        self.conv2 = self.make_unit(
            width,
            stride=1 if pools else stride,
            dilation=args.unit_dilation,
            groups=args.cardinality,
            radix=radix,
            drop_layer=args.drop_block,
            **args.layers,
        )
        self.avd_last = self.make_pool(stride) if pools and not avd_first else nn.Identity()
        self.add_expansion(width, out_planes, norm, **args.factory)
        self.add_tail(out_planes, _without_pool(downsample) if begins_dilated_stage else downsample, args)

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

    def residual(self, x: Tensor) -> Tensor:
        x = self.act1(conv_norm(x, self.conv1, self.bn1))
        x = self.avd_last(self.conv2(self.avd_first(x)))
        return conv_norm(x, self.conv3, self.bn3)

    def fold_own(self) -> None:
        fold_norm(self, 'conv1', 'bn1', act='act1')
        fold_norm(self, 'conv3', 'bn3')


class SplitAttentionBasic(SplitAttentionBottleneck):
    """Basic residual block whose second 3x3 convolution is a split attention without activation before it.

    It is the block of imgclsmob's ResNeSt(A)-18 (pytorchcv/models/resnesta.py), which pools before the split attention.
    Arguments are those of `SplitAttentionBottleneck`.

    Raises:
        ValueError: If `cardinality` or `base_width` are not those of a plain basic block, or for the reasons of
            `SplitAttentionBottleneck`.
    """

    expansion = 1
    last_norm = 'conv2.bn0'
    first_kernel_size = 3

    def make_unit(self, channels: int, **unit_kwargs: Any) -> SplitAttention:
        unit = super().make_unit(channels, **unit_kwargs)
        unit.act0 = nn.Identity()
        return unit

    def add_expansion(self, width: int, out_planes: int, norm: Callable[..., nn.Module], **factory: Any) -> None:
        if width != out_planes:
            raise ValueError(
                f'A basic block needs cardinality=1 and base_width=64, got {width} channels inside and {out_planes} '
                'outside: use a bottleneck variant for groups and other widths.'
            )
        self.conv3 = nn.Identity()
        self.bn3 = nn.Identity()


def _without_pool(downsample: nn.Module | None) -> nn.Module | None:
    """Leave the pool out of a shortcut that keeps the resolution; its parameters keep their names."""
    if not isinstance(downsample, nn.Sequential):
        return downsample
    return nn.Sequential(*(nn.Identity() if isinstance(layer, nn.AvgPool2d) else layer for layer in downsample))
