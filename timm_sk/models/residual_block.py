"""What the residual blocks of all families share: arguments, shortcut, and the form with folded norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm.models
import torch
from timm.layers import LayerType, create_act_layer, create_attn
from torch import Tensor, nn

from ..layers.bypass import can_bypass, runs_as_known
from ..layers.folded_conv import FoldedConv, FoldedConvNormAct, fold_sequence, is_identity, require_eval


@dataclass(frozen=True, kw_only=True)
class BlockArguments:
    """What `timm.models.ResNet` passes to a block beside channels, stride and shortcut.

    Attributes:
        cardinality: Number of convolution groups.
        base_width: Width of a group where `planes` is 64.
        reduce_first: Divisor of the first convolution's width.
        dilation: Dilation of the stage.
        first_dilation: Dilation of this block's unit, where it differs from the stage's.
        act_layer: Activation class or timm's name for it.
        norm_layer: Norm class or timm's name for it.
        attn_layer: Attention after the last convolution, such as 'se'.
        aa_layer: Anti-aliasing layer class, for strides above 1.
        drop_block: Makes the DropBlock layer between the unit's norm and activation.
        drop_path: Stochastic depth of the residual branch.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
    """

    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1
    dilation: int = 1
    first_dilation: int | None = None
    act_layer: LayerType = nn.ReLU
    norm_layer: LayerType = nn.BatchNorm2d
    attn_layer: LayerType | None = None
    aa_layer: type[nn.Module] | None = None
    drop_block: Callable[[], nn.Module] | None = None
    drop_path: nn.Module | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    @property
    def factory(self) -> dict[str, Any]:
        """Arguments of every layer with parameters."""
        return dict(device=self.device, dtype=self.dtype)

    @property
    def layers(self) -> dict[str, Any]:
        """Arguments of every unit of convolution, norm and activation."""
        return dict(act_layer=self.act_layer, norm_layer=self.norm_layer, **self.factory)

    @property
    def unit_dilation(self) -> int:
        return self.first_dilation or self.dilation


class ResidualBlock(nn.Module):
    """Shortcut, stochastic depth and the last activation around the residual branch of a subclass.

    Input [B, inplanes, H, W], output [B, expansion * planes, H / stride, W / stride].

    Attributes:
        expansion: Output channels as a multiple of `planes`.
        order: Names of the residual branch's modules, in the order in which they run.
        last_norm: Path of the residual branch's last norm.
    """

    expansion: int
    order: tuple[str, ...]
    last_norm: str

    def add_tail(self, out_channels: int, downsample: nn.Module | None, args: BlockArguments) -> None:
        """Add what follows the residual branch, in the order of timm's state dict."""
        self.se = create_attn(args.attn_layer, out_channels, **args.factory)
        self.act = create_act_layer(args.act_layer, inplace=True)
        self.downsample = downsample
        self.drop_path = args.drop_path

    def zero_init_last(self) -> None:
        """Start the residual branch at zero, if its last norm has a weight."""
        weight = getattr(self.get_submodule(self.last_norm), 'weight', None)
        if weight is not None:
            nn.init.zeros_(weight)

    def residual(self, x: Tensor) -> Tensor:
        """Run the residual branch."""
        for name in self.order:
            x = getattr(self, name)(x)
        return x

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
        """Fold the norms into the convolutions; timm puts the result in the block's place.

        Returns:
            A `FoldedBlock`, or this block, folded as far as possible, if something comes between its last convolution
            and the sum.

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
        left = [name for name in self.order if not is_identity(self.get_submodule(name))]
        return FoldedBlock(self, left) if left and self._ends_in_sum(left[-1]) else self

    def fold_own(self) -> None:
        """Fold the norms that are no child's; a step for subclasses to override."""

    def _ends_in_sum(self, last: str) -> bool:
        """Whether the last module of the residual branch can add the shortcut and activate."""
        known = (*self.order, 'act', 'downsample')
        others = [module for name, module in self.named_children() if name not in known]
        return (
            all(map(is_identity, others))
            and runs_as_known(self)
            and can_bypass(self, parts=False)
            and can_bypass(self.act)
            and _takes_shortcut(self.get_submodule(last))
        )


class FoldedBlock(nn.Module):
    """A residual block whose last convolution adds the shortcut and activates in its own pass.

    Its modules are the block's and keep their names. Input and output are those of the block.

    Args:
        block: The block, with folded norms.
        order: Names of the modules to run, in order; the last is a folded convolution.
    """

    def __init__(self, block: ResidualBlock, order: Sequence[str]) -> None:
        super().__init__()
        for name in order:
            self.add_module(name, block.get_submodule(name))
        *self.order, self.last = order
        last: Any = self.get_submodule(self.last)
        conv = last.conv if isinstance(last, FoldedConvNormAct) else last
        own = FoldedConv(conv, conv.weight, conv.bias)  # another block may have the convolution too
        own.absorb(block.act)
        setattr(self, self.last, FoldedConvNormAct(own, last.aa) if isinstance(last, FoldedConvNormAct) else own)
        self.downsample = block.downsample
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        for name in self.order:
            residual = getattr(self, name)(residual)
        shortcut = x if self.downsample is None else self.downsample(x)
        return getattr(self, self.last)(residual, shortcut)


def _takes_shortcut(module: nn.Module) -> bool:
    """Whether a module can add a shortcut in its pass: a folded convolution without anything after it."""
    conv = module.conv if isinstance(module, FoldedConvNormAct) and type(module.aa) is nn.Identity else module
    return isinstance(conv, FoldedConv) and not conv.activation and type(conv.act) is nn.Identity
