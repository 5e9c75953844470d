"""A folded selective-kernel unit whose two grouped branches one Triton kernel computes (`ops.kernels.two_branch`)."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import kernels
from ..ops.kernels import two_branch_tiling
from .bypass import can_bypass
from .folded_conv import FoldedConv, FoldedConvNormAct
from .merged_groups import merge_groups
from .selective_kernel import SelectiveKernel

FORMS = ('store_branches', 'recompute_branches')


class TwoBranchSelectiveKernel(SelectiveKernel):
    """What a folded unit becomes where the kernel is faster: the same modules, and its branches' weights packed.

    Input [B, in_channels, H, W], output [B, C, H', W'], channels last. The state dict is the unit's. The branches run
    as before where the kernel cannot: on another device or dtype, under autocast, traced or exported, where a gradient
    is asked for, or where hooks look at the branches.

    Args:
        unit: A folded unit for which `can_replace` is true; its modules are taken over.
        form: 'store_branches' to write the branches to memory once, 'recompute_branches' to compute them twice instead.

    Raises:
        ValueError: If there is no such form, the unit cannot be replaced, or there is no working Triton.
    """

    packed_weight: Tensor
    packed_bias: Tensor
    attn: nn.Module

    def __init__(self, unit: nn.Module, form: str) -> None:
        super(SelectiveKernel, self).__init__()  # the parts are there already
        if form not in FORMS:
            raise ValueError(f'form must be one of {", ".join(FORMS)}, got {form!r}.')
        if not can_replace(unit) or not kernels.load('two_branch'):
            raise ValueError(
                'The kernel needs Triton and a unit of two folded 3x3 branches of one input: ask `can_replace`.'
            )
        self._loaded = True
        self.form = form
        self.num_paths = unit.num_paths
        self.in_channels = unit.in_channels
        self.out_channels = unit.out_channels
        self.split_input = False
        self.paths = unit.paths
        self.attn = unit.get_submodule('attn')
        convs = convolutions(self)
        self.stride = int(convs[0].stride[0])
        self.dilations = [int(conv.dilation[0]) for conv in convs]
        for conv in convs:
            conv.merge(conv.groups)  # merged weights would be kept for nothing
        self.register_buffer('packed_weight', None, persistent=False)
        self.register_buffer('packed_bias', None, persistent=False)
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)
        self.train(unit.training)

    @torch.no_grad()
    def pack(self) -> None:
        """Lay out the branches' weights and biases for the kernel."""
        convs = convolutions(self)
        blocks = two_branch_tiling.block_count(self.in_channels, self.out_channels, convs[0].groups) or 1
        merged = [merge_groups(conv.weight, conv.groups, blocks) for conv in convs]
        self.packed_weight = two_branch_tiling.pack(merged, blocks)
        self.packed_bias = torch.stack([conv.bias for conv in convs if conv.bias is not None])

    def forward(self, x: Tensor) -> Tensor:
        if not self._can_launch(x):
            return super().forward(x)
        if self.form == 'store_branches':
            *branches, fused = self._launch(x, None, True)
            return ops.select(branches, self.attn(fused))
        (fused,) = self._launch(x, None, False)
        (selected,) = self._launch(x, self.attn(fused), False)
        return selected

    def _launch(self, x: Tensor, logits: Tensor | None, store_branches: bool) -> list[Tensor]:
        return torch.ops.timm_sk.two_branch(
            x, self.packed_weight, self.packed_bias, self.stride, self.dilations, logits, store_branches
        )

    def _can_launch(self, x: Tensor) -> bool:
        if not (self._loaded and ops.runs_kernels([x, self.packed_weight])):
            return False
        if x.dim() != 4 or torch.is_autocast_enabled(x.device.type):  # which casts for convolutions
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.paths.parameters())):
            return False
        return can_bypass(*self.paths)

    def extra_repr(self) -> str:
        return f'form={self.form}'

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._loaded = kernels.load('two_branch')  # where this copy is now


def can_replace(unit: nn.Module) -> TypeGuard[SelectiveKernel]:
    """Whether a module is a folded unit that the kernel computes, whatever its device.

    That has two branches of one input, each a 3x3 convolution (dilated, padded by its dilation) with bias and ReLU and
    nothing else, and equal groups that merge into blocks of 16 to 128 channels.
    """
    if not isinstance(unit, SelectiveKernel) or unit.split_input or unit.attn is None or unit.num_paths != 2:
        return False
    if type(unit).forward is not SelectiveKernel.forward or type(unit).split is not SelectiveKernel.split:
        return False
    if not can_bypass(unit) or not all(map(_is_conv_and_relu, unit.paths)):
        return False
    convs = convolutions(unit)
    first, second = [(c.kernel_size, c.stride, c.groups, c.weight.dtype, c.weight.device) for c in convs]
    return first == second and two_branch_tiling.can_take(
        unit.in_channels,
        unit.out_channels,
        convs[0].groups,
        kernel_size=convs[0].kernel_size,
        stride=convs[0].stride,
        paddings=[conv.padding for conv in convs],
        dilations=[conv.dilation for conv in convs],
        dtype=convs[0].weight.dtype,
    )


def _is_conv_and_relu(path: nn.Module) -> bool:
    if type(path) is not FoldedConvNormAct or type(path.aa) is not nn.Identity:
        return False
    conv = path.conv
    return conv.activation == 'relu' and type(conv.act) is nn.Identity and conv.bias is not None


def convolutions(unit: SelectiveKernel) -> list[FoldedConv]:
    """The convolutions of the branches of a unit for which `can_replace` is true."""
    return [path.get_submodule('conv') for path in unit.paths]  # type: ignore[misc]


def _pack_again(unit: TwoBranchSelectiveKernel, *unused: object) -> None:
    unit.pack()
