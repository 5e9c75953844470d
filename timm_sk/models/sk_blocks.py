"""The residual blocks that put a selective-kernel unit into timm's ResNet trunk.

They take what `timm.models.ResNet` passes to a block, have the parameter names of `timm/models/sknet.py`, and one
argument more: `sk_kwargs`, with further arguments of the unit.
"""

import inspect
from collections.abc import Callable
from typing import Any

import timm.models
import torch
from timm.layers import LayerType, create_act_layer, create_attn
from torch import Tensor, nn

from ..layers import ConvNormAct, SelectiveKernel
from ..layers.bypass import can_bypass, runs_as_known
from ..layers.folded_conv import fold_sequence, is_identity, require_eval
from .folded_blocks import FoldedBasic, FoldedBlock, FoldedBottleneck, takes_shortcut

# What the blocks decide themselves.
_BLOCKS_OWN = {'in_channels', 'out_channels', 'stride', 'act_layer', 'norm_layer', 'device', 'dtype'}


def make_unit(in_channels: int, out_channels: int, *, sk_kwargs: dict[str, Any] | None, **kwargs: Any) -> nn.Module:
    """Make a block's selective-kernel unit.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        sk_kwargs: Arguments of `timm_sk.SelectiveKernel` that win over `kwargs`, and `layer`: a subclass of it.
        **kwargs: Arguments that the block sets.

    Raises:
        ValueError: If `sk_kwargs` has an unknown key.
    """
    sk_kwargs = dict(sk_kwargs or {})
    layer = sk_kwargs.pop('layer', SelectiveKernel)
    known = inspect.signature(SelectiveKernel).parameters.keys() - _BLOCKS_OWN
    unknown = sk_kwargs.keys() - known
    if unknown:
        raise ValueError(
            f'Unknown sk_kwargs: {", ".join(sorted(unknown))}. There are: layer, {", ".join(sorted(known))}.'
        )
    return layer(in_channels, out_channels, **{**kwargs, **sk_kwargs})


class ResidualBlock(nn.Module):
    """Shortcut, stochastic depth and the last activation around the convolutions of a subclass."""

    expansion: int
    folded: type[FoldedBlock]  # what `fuse` makes

    def add_tail(
        self,
        out_channels: int,
        *,
        downsample: nn.Module | None,
        act_layer: LayerType,
        attn_layer: LayerType | None,
        drop_path: nn.Module | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Add what follows the convolutions, in the order that timm's state dict has."""
        self.se = create_attn(attn_layer, out_channels, device=device, dtype=dtype)
        self.act = create_act_layer(act_layer, inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        if self.se is not None:
            residual = self.se(residual)
        if self.drop_path is not None:
            residual = self.drop_path(residual)
        if self.downsample is not None:
            x = self.downsample(x)
        residual += x
        return self.act(residual)

    def fuse(self) -> nn.Module:
        """Fold the norms into the convolutions; timm puts what this returns in the block's place.

        Returns:
            A block that adds the shortcut in its last convolution's pass, or this one, folded as far as it goes, where
            something comes between.

        Raises:
            ValueError: In train mode.
        """
        require_eval(*self.modules())
        timm.models.reparameterize_model(self, inplace=True)
        self.fold_own()
        if isinstance(self.downsample, nn.Sequential):
            fold_sequence(self.downsample)
        if self.drop_path is not None and is_identity(self.drop_path):
            self.drop_path = None
        return self.folded(self) if self._is_folded() else self

    def _is_folded(self) -> bool:
        """Whether nothing is left to do between the convolutions that the folded block has."""
        kept = (*self.folded.names, 'act', 'downsample')
        between = [module for name, module in self.named_children() if name not in kept]
        last = self.get_submodule(self.folded.names[-1])
        return (
            all(map(is_identity, between))
            and runs_as_known(self)
            and can_bypass(self, parts=False)
            and can_bypass(self.act)
            and takes_shortcut(last)
        )

    def fold_own(self) -> None:
        """Fold the norms of which no child takes care; a step for subclasses to override."""


class SelectiveKernelBasic(ResidualBlock):
    """Basic residual block whose first 3x3 convolution is a selective-kernel unit.

    Input [B, inplanes, H, W], output [B, planes, H / stride, W / stride]. Takes what `timm.models.ResNet` passes to
    a block, and `sk_kwargs`: further arguments of `timm_sk.SelectiveKernel`.

    Raises:
        ValueError: If `cardinality` or `base_width` are not those of a plain basic block, which has no use for others.
    """

    expansion = 1
    folded = FoldedBasic

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        cardinality: int = 1,
        base_width: int = 64,
        sk_kwargs: dict[str, Any] | None = None,
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
        if cardinality != 1 or base_width != 64:
            raise ValueError(
                f'A basic block needs cardinality=1 and base_width=64, got {cardinality} and {base_width}: '
                'use a bottleneck variant for groups and other widths.'
            )
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, **factory)
        first_planes = planes // reduce_first
        self.conv1 = make_unit(
            inplanes,
            first_planes,
            stride=stride,
            dilation=first_dilation or dilation,
            aa_layer=aa_layer,
            drop_layer=drop_block,
            sk_kwargs=sk_kwargs,
            **layers,
        )
        self.conv2 = ConvNormAct(first_planes, planes, 3, dilation=dilation, **dict(layers, act_layer=None))
        self.add_tail(
            planes, downsample=downsample, act_layer=act_layer, attn_layer=attn_layer, drop_path=drop_path, **factory
        )

    def zero_init_last(self) -> None:
        zero_weight(self.conv2.bn)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class SelectiveKernelBottleneck(ResidualBlock):
    """Bottleneck residual block whose 3x3 convolution is a selective-kernel unit: the paper's SK unit.

    Input [B, inplanes, H, W], output [B, 4 * planes, H / stride, W / stride]. Takes what `timm.models.ResNet` passes
    to a block, and `sk_kwargs`: further arguments of `timm_sk.SelectiveKernel`.
    """

    expansion = 4
    folded = FoldedBottleneck

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        cardinality: int = 1,
        base_width: int = 64,
        sk_kwargs: dict[str, Any] | None = None,
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
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, **factory)
        width = planes * base_width // 64 * cardinality
        first_planes = width // reduce_first
        out_planes = planes * self.expansion
        self.conv1 = ConvNormAct(inplanes, first_planes, 1, **layers)
        self.conv2 = make_unit(
            first_planes,
            width,
            stride=stride,
            dilation=first_dilation or dilation,
            groups=cardinality,
            aa_layer=aa_layer,
            drop_layer=drop_block,
            sk_kwargs=sk_kwargs,
            **layers,
        )
        self.conv3 = ConvNormAct(width, out_planes, 1, **dict(layers, act_layer=None))
        self.add_tail(
            out_planes,
            downsample=downsample,
            act_layer=act_layer,
            attn_layer=attn_layer,
            drop_path=drop_path,
            **factory,
        )

    def zero_init_last(self) -> None:
        zero_weight(self.conv3.bn)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def zero_weight(norm: nn.Module) -> None:
    """Start a residual branch as an identity, if its last norm has a weight."""
    weight = getattr(norm, 'weight', None)
    if weight is not None:
        nn.init.zeros_(weight)
