"""The selective-kernel unit of "Selective Kernel Networks" (Li, Wang, Hu, Yang, CVPR 2019, arXiv:1903.06586).

Signature, parameter names and outputs are those of `timm.layers.SelectiveKernel`, whose split of the input channels
over the branches is not in the paper. Differences: branches are never stacked, `act_layer` and `norm_layer` apply to
the attention as well, and every kernel size is checked.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer, make_divisible
from torch import Tensor, nn

from .. import ops
from .bypass import can_bypass, refuse_scripting
from .conv_norm_act import ConvNormAct
from .conv_sequence import make_branches
from .folded_conv import FoldedConvNormAct, fold_norm
from .pooled_norm import make_pooled_norm, require_batch


class SelectiveKernelAttn(nn.Module):
    """Compute the logits of the selection from the fused descriptor: reduce, norm, activation, expand.

    Equations 3 and 4 of the paper. Input [B, C], output [B, M, C]; the softmax over M belongs to `ops.select`.

    Args:
        channels: C, the channels of a branch.
        num_paths: M, the number of branches.
        attn_channels: Width d of the hidden layer.
        act_layer: Activation class or timm's name for it.
        norm_layer: Norm class or timm's name for it.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If the norm would turn every pooled value into a constant.
    """

    def __init__(
        self,
        channels: int,
        num_paths: int = 2,
        attn_channels: int = 32,
        *,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, attn_channels, kernel_size=1, bias=False, device=device, dtype=dtype)
        self.bn = make_pooled_norm(norm_layer, attn_channels, device=device, dtype=dtype)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc_select = nn.Conv2d(
            attn_channels, channels * num_paths, kernel_size=1, bias=False, device=device, dtype=dtype
        )

    def forward(self, fused: Tensor) -> Tensor:
        require_batch(fused, self.bn)
        hidden = self.act(self.bn(self.fc_reduce(fused[:, :, None, None])))  # [B, d, 1, 1]
        expanded = self.fc_select(hidden)  # [B, M * C, 1, 1]
        # in one step, which pruning tools can follow
        return expanded.reshape(expanded.shape[0], self.num_paths, expanded.shape[1] // self.num_paths)

    def reparameterize(self) -> None:
        """Fold the norm into the convolution before it, where that is possible.

        Raises:
            ValueError: In train mode.
        """
        fold_norm(self, 'fc_reduce', 'bn', act='act')


class SelectiveKernel(nn.Module):
    """Split, fuse, select: convolutions with several receptive fields, weighed per channel by attention.

    Input [B, in_channels, H, W], output [B, out_channels, ceil(H / stride), ceil(W / stride)].

    Args:
        in_channels: Channels of the input.
        out_channels: C, channels of each branch and of the output; None for `in_channels`.
        kernel_size: Odd size of each branch's kernel, 3 or more; an int stands for two such branches, None for [3, 5].
        stride: Stride of every branch.
        dilation: Factor of the dilation of each branch.
        groups: G, convolution groups of all branches, or a number for each; at most `out_channels` are used.
        rd_ratio: 1 / r; the attention's width is `out_channels * rd_ratio`, rounded to `rd_divisor`.
        rd_channels: Width of the attention, instead of `rd_ratio`.
        rd_divisor: Divisor and lower bound (L in the paper) of the attention's width, which is not below 90 % of the
            exact ratio.
        keep_3x3: Turn kernels above 3 into dilated 3x3 kernels, as in the paper.
        split_input: Give each branch its own share of the input channels instead of all of them.
        attention: Select among the branches; False for their sum, the control of Table 7 in the paper.
        act_layer: Activation class or timm's name for it, in the branches and in the attention.
        norm_layer: Norm class or timm's name for it, in the branches and in the attention.
        aa_layer: Anti-aliasing layer class of the branches, where the stride is above 1.
        drop_layer: Function that makes the layer between norm and activation of a branch, such as DropBlock.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If there is no kernel size, or one that is even or below 3; if the channels do not divide into the
            branches (`split_input`) or into the groups; if `groups` has not one entry per branch; at a forward pass
            in train mode with a batch of 1, if the attention's norm is a BatchNorm that is training and not
            synchronised.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int | Sequence[int] = 1,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
        attention: bool = True,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: type[nn.Module] | None = None,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        kernel_sizes = _as_kernel_sizes(kernel_size)
        self.num_paths = len(kernel_sizes)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.split_input = split_input
        if split_input and in_channels % self.num_paths:
            raise ValueError(
                f'split_input needs in_channels that divide into the branches, got {in_channels} channels for '
                f'{self.num_paths} branches: change either, or pass split_input=False.'
            )
        path_channels = in_channels // self.num_paths if split_input else in_channels
        branch_groups = _as_branch_groups(groups, self.num_paths, path_channels, out_channels)
        self.paths = nn.ModuleList(
            self.make_path(
                path_channels,
                out_channels,
                kernel_size=3 if keep_3x3 else size,
                stride=stride,
                dilation=dilation * (size - 1) // 2 if keep_3x3 else dilation,
                groups=path_groups,
                norm_layer=norm_layer,
                act_layer=act_layer,
                aa_layer=aa_layer,
                drop_layer=drop_layer,
                device=device,
                dtype=dtype,
            )
            for size, path_groups in zip(kernel_sizes, branch_groups, strict=True)
        )
        attn_channels = rd_channels or make_divisible(out_channels * rd_ratio, divisor=rd_divisor)
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, device=device, dtype=dtype)
        self.attn = self.make_attention(out_channels, self.num_paths, attn_channels, **layers) if attention else None

    def make_path(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, **conv_kwargs: Any
    ) -> nn.Module:
        """Make one branch from the arguments of `ConvNormAct`; a step for subclasses to override."""
        return ConvNormAct(in_channels, out_channels, kernel_size, stride=stride, **conv_kwargs)

    def make_attention(self, channels: int, num_paths: int, attn_channels: int, **layers: Any) -> nn.Module:
        """Make the module that turns the descriptor into logits; a step for subclasses to override."""
        return SelectiveKernelAttn(channels, num_paths, attn_channels, **layers)

    def split(self, x: Tensor) -> ops.Branches | list[Tensor]:
        """Run every branch: [B, in_channels, H, W] -> M x [B, C, H', W']; a list when `torch.fx` traces."""
        shares = x.chunk(self.num_paths, dim=1) if self.split_input else [x] * self.num_paths
        return ops.join([_run_path(path, shares[m]) for m, path in enumerate(self.paths)])

    def forward(self, x: Tensor) -> Tensor:
        branches = self.split(x)  # M x [B, C, H', W']
        if self.attn is None:
            return reduce(torch.add, branches)
        return ops.select(branches, self.attn(ops.fuse(branches)), in_place=True)

    __prepare_scriptable__ = refuse_scripting


def _run_path(path: nn.Module, x: Tensor) -> ops.Branches:
    if (type(path) is ConvNormAct or type(path) is FoldedConvNormAct) and can_bypass(path, parts=False):
        return make_branches(x, path.layers())
    return ops.Branches([path(x)], observed=not can_bypass(path))


def _as_kernel_sizes(kernel_size: int | Sequence[int] | None) -> list[int]:
    """Spell out one kernel size per branch and check each."""
    if kernel_size is None:
        kernel_size = [3, 5]
    elif isinstance(kernel_size, int):
        kernel_size = [kernel_size] * 2
    if not kernel_size:
        raise ValueError('kernel_size needs one entry per branch, got none: pass a list such as [3, 5].')
    for size in kernel_size:
        if not isinstance(size, int) or size < 3 or size % 2 == 0:
            raise ValueError(f'Every kernel size must be an odd integer, 3 or more; got {size} in {list(kernel_size)}.')
    return list(kernel_size)


def _as_branch_groups(groups: int | Sequence[int], num_paths: int, in_channels: int, out_channels: int) -> list[int]:
    """Spell out the convolution groups of each branch and check that they divide its channels."""
    branch_groups = [groups] * num_paths if isinstance(groups, int) else list(groups)
    branch_groups = [min(out_channels, count) for count in branch_groups]
    if len(branch_groups) != num_paths:
        raise ValueError(
            f'groups needs one entry per branch, got {branch_groups} for {num_paths} branches: '
            'pass one number for all, or as many as there are kernel sizes.'
        )
    for count in branch_groups:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f'groups must be integers of at least 1, got {count}: 1 stands for a dense convolution.')
        if in_channels % count or out_channels % count:
            raise ValueError(
                f'groups must divide the channels of every branch, got {count} groups for {in_channels} input and '
                f'{out_channels} output channels: choose a divisor of both.'
            )
    return branch_groups
