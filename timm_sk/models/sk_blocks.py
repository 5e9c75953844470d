"""The residual blocks that put a selective-kernel unit into timm's ResNet trunk.

Their parameters have the names of `timm/models/sknet.py`. They take one argument more than timm's: `sk_kwargs`, further
arguments of the unit.
"""

import inspect
from typing import Any

from torch import nn

from ..layers import ConvNormAct, SelectiveKernel
from .residual_block import BlockArguments, ResidualBlock

_SET_BY_THE_BLOCK = {'in_channels', 'out_channels', 'stride', 'act_layer', 'norm_layer', 'device', 'dtype'}


def make_unit(
    in_channels: int, out_channels: int, args: BlockArguments, *, sk_kwargs: dict[str, Any] | None, **kwargs: Any
) -> nn.Module:
    """Make a block's selective-kernel unit.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        args: Arguments of the block.
        sk_kwargs: Arguments of `timm_sk.SelectiveKernel` that override the block's, and `layer`: a subclass of it.
        **kwargs: Further arguments of the unit.

    Raises:
        ValueError: If `sk_kwargs` has an unknown key.
    """
    sk_kwargs = dict(sk_kwargs or {})
    layer = sk_kwargs.pop('layer', SelectiveKernel)
    known = inspect.signature(SelectiveKernel).parameters.keys() - _SET_BY_THE_BLOCK
    unknown = sk_kwargs.keys() - known
    if unknown:
        raise ValueError(
            f'Unknown sk_kwargs: {", ".join(sorted(unknown))}. There are: layer, {", ".join(sorted(known))}.'
        )
    kwargs.update(dilation=args.unit_dilation, aa_layer=args.aa_layer, drop_layer=args.drop_block, **args.layers)
    return layer(in_channels, out_channels, **{**kwargs, **sk_kwargs})


class SelectiveKernelBasic(ResidualBlock):
    """Basic residual block whose first 3x3 convolution is a selective-kernel unit.

    Arguments are those of `SelectiveKernelBottleneck`.

    Raises:
        ValueError: If `cardinality` or `base_width` are not those of a plain basic block.
    """

    expansion = 1
    order = ('conv1', 'conv2')
    last_norm = 'conv2.bn'

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        sk_kwargs: dict[str, Any] | None = None,
        **block_args: Any,
    ) -> None:
        super().__init__()
        args = BlockArguments(**block_args)
        if args.cardinality != 1 or args.base_width != 64:
            raise ValueError(
                f'A basic block needs cardinality=1 and base_width=64, got {args.cardinality} and {args.base_width}: '
                'use a bottleneck variant for groups and other widths.'
            )
        first_planes = planes // args.reduce_first
        self.conv1 = make_unit(inplanes, first_planes, args, stride=stride, sk_kwargs=sk_kwargs)
        last = dict(args.layers, act_layer=None)
        self.conv2 = ConvNormAct(first_planes, planes, 3, dilation=args.dilation, **last)
        self.add_tail(planes, downsample, args)


class SelectiveKernelBottleneck(ResidualBlock):
    """Bottleneck residual block whose 3x3 convolution is a selective-kernel unit: the paper's SK unit.

    Args:
        inplanes: Channels of the input.
        planes: Channels of the output, divided by the block's expansion.
        stride: Stride of the block.
        downsample: Modules of the shortcut.
        sk_kwargs: Further arguments of `timm_sk.SelectiveKernel`.
        **block_args: `BlockArguments`.
    """

    expansion = 4
    order: tuple[str, ...] = ('conv1', 'conv2', 'conv3')
    last_norm = 'conv3.bn'

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        sk_kwargs: dict[str, Any] | None = None,
        **block_args: Any,
    ) -> None:
        super().__init__()
        args = BlockArguments(**block_args)
        width = planes * args.base_width // 64 * args.cardinality
        first_planes = width // args.reduce_first
        out_planes = planes * self.expansion
        self.conv1 = ConvNormAct(inplanes, first_planes, 1, **args.layers)
        self.add_unit(first_planes, width, stride, args, sk_kwargs)
        self.conv3 = ConvNormAct(width, out_planes, 1, **dict(args.layers, act_layer=None))
        self.add_tail(out_planes, downsample, args)

    def add_unit(
        self, in_channels: int, width: int, stride: int, args: BlockArguments, sk_kwargs: dict[str, Any] | None
    ) -> None:
        """Add what lies between the 1x1 convolutions; a step for subclasses to override."""
        self.conv2: nn.Module = make_unit(
            in_channels, width, args, stride=stride, groups=args.cardinality, sk_kwargs=sk_kwargs
        )
