"""Units rewritten for inference engines: the same values from graphs with fewer nodes than timm's.

With two branches the softmax is a sigmoid of the difference of the logits, and the selection an interpolation:
`softmax([p, q]) = [w, 1 - w]` with `w = sigmoid(p - q)`, so `a w + b (1 - w) = b + (a - b) w`. The difference of the
logits is one smaller layer, whose weight is the difference of the two halves of the last layer's. Neither a gather nor
a stack of the branches is left in the graph.
"""

import copy
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from timm.layers.split_attn import RadixSoftmax, SplitAttn
from torch import Tensor, nn

from ..layers.bypass import can_bypass
from ..layers.folded_conv import is_plain
from ..layers.selective_kernel import SelectiveKernel, SelectiveKernelAttn
from ..layers.split_attention import SplitAttention
from .fold import fold_model


def graph_form(model: nn.Module) -> nn.Module:
    """Copy a model, plain or folded, in the form in which it is exported: norms folded, units rewritten.

    The copy has the same outputs up to rounding, in float32 on the CPU, without gradients.

    Raises:
        ValueError: If a part of the model is in train mode.
    """
    graph = copy.deepcopy(model).requires_grad_(False).float().cpu().to(memory_format=torch.contiguous_format)
    fold_model(graph)
    for module in list(graph.modules()):
        for name, child in module.named_children():
            if _can_rewrite_selective_kernel(child):
                setattr(module, name, _InterpolatedSelectiveKernel(child).eval())
            elif type(child) is SplitAttention and can_bypass(child, parts=False) and is_plain(child.fc2):
                rewritten = _InterpolatedSplitAttention if child.radix == 2 else _StackedSplitAttention
                setattr(module, name, rewritten(child).eval())
    return graph


def _can_rewrite_selective_kernel(module: nn.Module) -> TypeGuard[SelectiveKernel]:
    return (
        isinstance(module, SelectiveKernel)
        and type(module).forward is SelectiveKernel.forward
        and can_bypass(module, parts=False)
        and type(module.attn) is SelectiveKernelAttn
        and can_bypass(module.attn, parts=False)
        and is_plain(module.attn.fc_select)
        and module.num_paths == 2
    )


def _difference(expand: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution to the difference of two branches' logits, which lie side by side in each group."""
    groups, width = expand.groups, expand.out_channels // 2
    conv = nn.Conv2d(expand.in_channels, width, 1, groups=groups, bias=expand.bias is not None)
    first, second = expand.weight.view(groups, 2, width // groups, -1).unbind(1)
    conv.weight.copy_((first - second).view(conv.weight.shape))
    if expand.bias is not None and conv.bias is not None:
        first, second = expand.bias.view(groups, 2, -1).unbind(1)
        conv.bias.copy_((first - second).flatten())
    return conv


def _pool(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]


class _Interpolation(nn.Module):
    """A unit of two branches, [B, in_channels, H, W] -> [B, C, H', W']; `expand` is the attention's last layer."""

    def __init__(self, hidden: Iterable[nn.Module], expand: nn.Conv2d) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*hidden)
        with torch.no_grad():
            self.difference = _difference(expand)

    def split(self, x: Tensor) -> Any:
        """The branches, [B, C, H', W'] each."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.split(x)
        weight = self.difference(self.hidden(_pool(first + second))).sigmoid()  # [B, C, 1, 1]
        return second + (first - second) * weight


class _InterpolatedSelectiveKernel(_Interpolation):
    def __init__(self, unit: SelectiveKernel) -> None:
        attn: Any = unit.attn
        super().__init__((attn.fc_reduce, attn.bn, attn.act), attn.fc_select)
        self.unit = unit
        unit.attn = None  # its layers are here

    def split(self, x: Tensor) -> Any:
        return self.unit.split(x)


class _InterpolatedSplitAttention(_Interpolation):
    def __init__(self, unit: SplitAttention) -> None:
        super().__init__((unit.fc1, unit.bn1, unit.act1), unit.fc2)
        self.convolution = nn.Sequential(unit.conv, unit.bn0, unit.drop, unit.act0)

    def split(self, x: Tensor) -> Any:
        return self.convolution(x).chunk(2, dim=1)


class _StackedSplitAttention(nn.Module):
    """Split attention of another radix, as timm computes it: one convolution leaves the branches stacked."""

    def __init__(self, unit: SplitAttention) -> None:
        super().__init__()
        self.unit = unit
        unit.rsoftmax = RadixSoftmax(unit.radix, unit.cardinality)  # the only part that timm's layer has and ours lacks

    def forward(self, x: Tensor) -> Tensor:
        return SplitAttn.forward(self.unit, x)
