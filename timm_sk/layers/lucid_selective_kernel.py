"""A selective kernel with bare branches and one weight per branch, which is not in the paper.

Lucid's `SelectiveKernel` (ChanLumerico/lucid, lucid/nn/fused.py, versions 1 and 2) differs from the paper's unit in
this: a branch is a true k x k convolution without norm and activation, for any k; the attention gives each picture one
weight per branch instead of one per branch and channel; its width is C // r without a lower bound.
"""

from collections.abc import Sequence
from typing import Any, List

import torch
import torch.fx
from timm.layers import LayerType
from torch import Tensor, nn

from .. import ops
from . import pooled_norm
from .bypass import can_bypass
from .selective_kernel import SelectiveKernel, SelectiveKernelAttn


class BranchAttn(SelectiveKernelAttn):
    """Attention with one logit per branch: [B, C] -> [B, M, 1].

    Takes the arguments of `SelectiveKernelAttn`; only `fc_select` is smaller.
    """

    def __init__(self, channels: int, num_paths: int = 2, attn_channels: int = 32, **layers: Any) -> None:
        super().__init__(channels, num_paths, attn_channels, **layers)
        factory: dict[str, Any] = dict(device=self.fc_select.weight.device, dtype=self.fc_select.weight.dtype)
        self.fc_select = nn.Conv2d(attn_channels, num_paths, kernel_size=1, bias=False, **factory)


class BareSelectiveKernel(SelectiveKernel):
    """Split, fuse, select with bare convolutions as branches.

    Input [B, in_channels, H, W], output [B, out_channels, H', W']; with odd kernels and the default padding H' is
    ceil(H / stride).

    Args:
        in_channels: Channels of the input, all of which each branch sees.
        out_channels: C, channels of each branch and of the output.
        kernel_sizes: Size of each branch's kernel, 1 or more, odd or even; sizes may repeat.
        stride: Stride of every branch.
        dilation: Dilation of every branch.
        padding: None for `k // 2` on all sides of each branch, an int for all branches, 'same' for `(k - 1) // 2`, or
            'valid' for none. The first and the third are multiplied by the dilation, and differ for even kernels.
            'same' is Lucid's, with any stride: symmetric, so it is neither torch's nor TensorFlow's for even kernels
            or strides above 1.
        groups: G, convolution groups of each branch.
        reduction: r; the attention's width is `out_channels // reduction`.
        select: 'branch' for one weight per branch, 'channel' for the paper's weight per branch and channel.
        single_image: Accept a batch of 1 in train mode, where a BatchNorm of pooled values leaves nothing but its
            bias, so that the weights do not depend on the picture.
        act_layer: Activation class or timm's name for it, in the attention.
        norm_layer: Norm class or timm's name for it, in the attention.
        device: Where the parameters are made.
        dtype: Their floating-point type.

    Raises:
        ValueError: If an argument is out of range, or the groups do not divide the channels; at a forward pass, if the
            padding gives the branches different sizes, or in train mode with a batch of 1 without `single_image`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | str | None = None,
        groups: int = 1,
        reduction: int = 16,
        select: str = 'branch',
        single_image: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super(SelectiveKernel, self).__init__()  # the parts are other ones; what is inherited is how they play together
        _check_arguments(in_channels, out_channels, kernel_sizes, padding, groups, reduction, select)
        self.num_paths = len(kernel_sizes)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.split_input = False
        self.kernel_sizes = list(kernel_sizes)
        self.padding = repr(padding)
        self.single_image = single_image
        self.paths = nn.ModuleList(
            nn.Conv2d(
                in_channels,
                out_channels,
                size,
                stride=stride,
                padding=_padding_of(size, dilation, padding),
                dilation=dilation,
                groups=groups,
                bias=False,
                device=device,
                dtype=dtype,
            )
            for size in kernel_sizes
        )
        attention: type[SelectiveKernelAttn] = BranchAttn if select == 'branch' else SelectiveKernelAttn
        self.attn: nn.Module = attention(
            out_channels,
            self.num_paths,
            out_channels // reduction,
            act_layer=act_layer,
            norm_layer=norm_layer,
            device=device,
            dtype=dtype,
        )

    def split(self, x: Tensor) -> List[Tensor]:
        branches = require_one_size([path(x) for path in self.paths], self.kernel_sizes, self.padding)
        if not torch.jit.is_scripting():
            return ops.join([ops.Branches(branches, observed=not can_bypass(*self.paths))])
        return branches

    def forward(self, x: Tensor) -> Tensor:
        branches = self.split(x)  # M x [B, C, H', W']
        fused = ops.fuse(branches)
        attended = pooled_norm.at_least_two(fused) if self.training and self.single_image else fused
        logits = self.attn(attended)[: fused.shape[0]]  # [B, M, 1] or [B, M, C]
        return ops.select(branches, logits.expand(-1, -1, fused.shape[1]))


def require_one_size(branches: List[Tensor], kernel_sizes: List[int], padding: str) -> List[Tensor]:
    """Return the branches unless their heights or widths differ."""
    if torch.jit.is_tracing():
        return branches
    for branch in branches:
        if branch.shape[-2:] != branches[0].shape[-2:]:
            found = ''
            for m, other in enumerate(branches):
                found = found + f'{other.shape[-2]}x{other.shape[-1]} for kernel {kernel_sizes[m]}, '
            raise ValueError(
                f'All branches must have one size, got {found}with padding={padding}: use padding=None with kernel '
                'sizes that are all odd or all even, or equal kernel sizes.'
            )
    return branches


torch.fx.wrap('require_one_size')


def _padding_of(kernel_size: int, dilation: int, padding: int | str | None) -> int:
    if padding == 'valid':
        return 0
    if padding == 'same':
        return dilation * (kernel_size - 1) // 2
    return dilation * (kernel_size // 2) if padding is None else int(padding)


def _check_arguments(
    in_channels: int,
    out_channels: int,
    kernel_sizes: Sequence[int],
    padding: int | str | None,
    groups: int,
    reduction: int,
    select: str,
) -> None:
    if not isinstance(kernel_sizes, Sequence) or isinstance(kernel_sizes, str) or not kernel_sizes:
        raise ValueError(f'kernel_sizes needs one entry per branch, got {kernel_sizes!r}: pass a list such as [3, 5].')
    for size in kernel_sizes:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f'Every kernel size must be a whole number from 1, got {size!r} in {list(kernel_sizes)}.')
    if padding not in (None, 'same', 'valid') and not (isinstance(padding, int) and padding >= 0):
        raise ValueError(f"padding must be None, 'same', 'valid' or a whole number from 0, got {padding!r}.")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f'groups must divide the channels of every branch, got {groups} groups for {in_channels} input and '
            f'{out_channels} output channels: choose a divisor of both.'
        )
    if not 1 <= reduction <= out_channels:
        raise ValueError(
            f'reduction must be between 1 and out_channels, got {reduction} for {out_channels} channels: the attention '
            'is out_channels // reduction wide.'
        )
    if select not in ('branch', 'channel'):
        raise ValueError(f"select must be 'branch' or 'channel', got {select!r}.")
