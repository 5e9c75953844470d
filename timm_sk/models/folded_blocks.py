"""Residual blocks with folded norms, whose last convolution adds the shortcut and activates in its own pass.

A residual block's `fuse()` makes them of its own, already folded, modules, which keep their names.
"""

from typing import Any

from torch import Tensor, nn

from ..layers.folded_conv import FoldedConv, FoldedConvNormAct


class FoldedBlock(nn.Module):
    """What the folded blocks share.

    Input [B, C, H, W], output as of the block.

    Args:
        block: The block, whose norms are folded.
        names: Its modules in the order in which they run; the last is a folded convolution.
    """

    names: tuple[str, ...]
    conv1: nn.Module
    conv2: nn.Module
    conv3: nn.Module
    bn2: nn.Module
    act2: nn.Module
    aa: nn.Module
    avd_first: nn.Module
    avd_last: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in self.names:
            self.add_module(name, block.get_submodule(name))
        last: Any = self.get_submodule(self.names[-1])
        conv = last.conv if isinstance(last, FoldedConvNormAct) else last
        own = FoldedConv(conv, conv.weight, conv.bias)  # another block may have the convolution too
        own.absorb(block.get_submodule('act'))
        setattr(self, self.names[-1], FoldedConvNormAct(own, last.aa) if isinstance(last, FoldedConvNormAct) else own)
        self.downsample: nn.Module | None = getattr(block, 'downsample', None)
        self.train(block.training)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        return x


class FoldedBasic(FoldedBlock):
    """Of `SelectiveKernelBasic`."""

    names = ('conv1', 'conv2')

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), self.shortcut(x))


class FoldedBottleneck(FoldedBlock):
    """Of `SelectiveKernelBottleneck`."""

    names = ('conv1', 'conv2', 'conv3')

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)), self.shortcut(x))


class FoldedBareBottleneck(FoldedBlock):
    """Of Lucid's blocks; the norm after their unit stays, since no single convolution comes before it."""

    names = ('conv1', 'conv2', 'bn2', 'act2', 'aa', 'conv3')

    def forward(self, x: Tensor) -> Tensor:
        selected = self.act2(self.bn2(self.conv2(self.conv1(x))))
        return self.conv3(self.aa(selected), self.shortcut(x))


class FoldedSplitAttentionBottleneck(FoldedBlock):
    """Of `SplitAttentionBottleneck`."""

    names = ('conv1', 'avd_first', 'conv2', 'avd_last', 'conv3')

    def forward(self, x: Tensor) -> Tensor:
        selected = self.conv2(self.avd_first(self.conv1(x)))
        return self.conv3(self.avd_last(selected), self.shortcut(x))


def takes_shortcut(module: nn.Module) -> bool:
    """Whether a module can add a shortcut in its pass: a folded convolution that nothing follows so far."""
    conv = module.conv if isinstance(module, FoldedConvNormAct) and type(module.aa) is nn.Identity else module
    return isinstance(conv, FoldedConv) and not conv.activation and type(conv.act) is nn.Identity
