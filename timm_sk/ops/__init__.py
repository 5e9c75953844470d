"""The two operations of SK units and of split attention: `fuse` the branches into one descriptor, `select` among them.

`total`, the plain sum of the branches, is the control without selection.

This is the only place that decides which implementation runs: the Triton kernels of `kernels` on a CUDA device, also in
graphs of `torch.compile`; elsewhere `eager` for tensors that are computed at once, and `reference` for what others
export, trace, transform or compile. Both functions are leaves to `torch.fx`, so that their argument checks survive
symbolic tracing.
"""

from collections.abc import Sequence
from typing import Any, List

import torch
import torch.fx
from torch import Tensor

from . import eager, kernels, reference
from .branches import BatchNormReLUState, Branches, Epilogue, join
from .eager import batch_norm_relu, has_tangent, runs_eagerly

__all__ = [
    'BatchNormReLUState',
    'Branches',
    'Epilogue',
    'allows_shortcuts',
    'batch_norm_relu',
    'can_defer',
    'can_recompute',
    'fuse',
    'has_tangent',
    'join',
    'runs_eagerly',
    'runs_kernels',
    'runs_two_branch_kernel',
    'select',
    'total',
]


@torch.compiler.assume_constant_result  # Dynamo of torch 2.11 takes torch's own function for a constant True
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def runs_kernels(branches: Sequence[Any], logits: Any = None, *, radix: int = 1) -> bool:
    """Whether `fuse` and `select` run as Triton kernels on such branches, or on what they are made from.

    Besides what `kernels.takes` asks for, the tensors must run eagerly or be compiled by `torch.compile`, whose graphs
    keep the kernels while `kernels.IN_COMPILED_GRAPHS` says so; what is exported runs anywhere, and so without them.
    """
    tensors = [*branches] if logits is None else [*branches, logits]
    if not all(type(tensor) is Tensor for tensor in tensors) or not kernels.takes([*branches] * radix, logits):
        return False
    if torch.compiler.is_compiling():
        elsewhere = _is_exporting() or torch._C._are_functorch_transforms_active()
        return kernels.IN_COMPILED_GRAPHS and not elsewhere
    return all(map(runs_eagerly, tensors))


def runs_two_branch_kernel(x: Any, weight: Tensor) -> bool:
    """Whether the kernel of two grouped branches runs on an input, beside its weight packed by `kernels`.

    Besides what `runs_kernels` asks for, the input must be a batch of the weight's dtype, outside autocast, which would
    cast for the convolutions that the kernel stands in for.
    """
    if type(x) is not Tensor or x.dim() != 4 or torch.is_autocast_enabled(x.device.type):
        return False
    return runs_kernels([x, weight])


def can_recompute(source: Tensor, norm: Any, radix: int = 1) -> bool:
    """Whether `batch_norm_relu` may stand in for a batch norm and a ReLU after a convolution's output.

    Not on a CUDA device, where time is in short supply rather than memory; nor without two values in each channel,
    which the norm itself refuses.
    """
    recorded = torch.is_grad_enabled() and runs_eagerly(source) and source.dim() == 4
    if eager.has_tangent(norm.weight) or eager.has_tangent(norm.bias):
        return False
    return recorded and source.numel() > source.shape[1] and not runs_kernels([source] * radix)


def can_defer(x: Tensor, radix: int) -> bool:
    """Whether bias and activation of the R branches made from an input may be left to the kernels."""
    return not torch.is_grad_enabled() and runs_kernels([x], radix=radix)


def allows_shortcuts(x: Tensor, radix: int = 1) -> bool:
    """Whether anything but the modules themselves may run on an input: it is computed at once, or by the kernels."""
    return runs_eagerly(x) or can_defer(x, radix)


def _runs_eager(tensors: Sequence[Tensor]) -> bool:
    """Whether branches run eagerly and are of one dtype; the reference promotes others."""
    return all(runs_eagerly(tensor) and tensor.dtype == tensors[0].dtype for tensor in tensors)


def _fuse_by_kernel(branches: Branches) -> Tensor:
    from .kernels import fuse, fuse_select_bias_act  # of Triton, which is not needed elsewhere

    if branches.epilogue is None:
        return fuse.fuse(branches.tensors, branches.radix)
    return fuse_select_bias_act.fuse_bias_act(branches.tensors, *branches.epilogue)


def _select_by_kernel(branches: Branches, logits: Tensor, gate: str) -> Tensor:
    from .kernels import fuse_select_bias_act, select

    if branches.epilogue is None:
        return select.select(branches.tensors, logits, gate)
    return fuse_select_bias_act.select_bias_act(branches.tensors, *branches.epilogue, logits, gate)


def _check_branches(branches: List[Tensor]) -> None:
    if not torch.jit.is_scripting() and isinstance(branches, Tensor):
        raise ValueError('Branches must be a list of M tensors [B, C, H, W], got one tensor: pass list(x.unbind(dim)).')
    if len(branches) == 0:
        raise ValueError('fuse and select need at least one branch, got none: pass a list of M tensors [B, C, H, W].')
    first = branches[0]
    if first.dim() != 4:
        raise ValueError(f'A branch must be a tensor [B, C, H, W], got {first.dim()} dimensions: add the missing ones.')
    for m, branch in enumerate(branches):
        if branch.shape != first.shape:
            raise ValueError(
                f'All branches must have one shape, got {list(branch.shape)} for branch {m} and {list(first.shape)} '
                'for branch 0: give their convolutions one stride and number of channels, and paddings that keep one '
                'size, such as k // 2 for odd kernels.'
            )


def _as_branches(branches: Sequence[Tensor] | Branches) -> Branches:
    """Check the branches, unless they are traced, and know them by one value."""
    given = branches if isinstance(branches, Branches) else Branches(branches)
    if not torch.jit.is_tracing():
        _check_branches(given.tensors)  # type: ignore[arg-type]
    return given


def _check_logits(tensors: List[Tensor], radix: int, logits: Tensor, gate: str) -> None:
    if gate not in ('softmax', 'sigmoid'):
        raise ValueError(f"The gate must be 'softmax' or 'sigmoid', got '{gate}'.")
    expected = [tensors[0].shape[0], len(tensors) * radix, tensors[0].shape[1] // radix]
    if list(logits.shape) != expected:
        raise ValueError(
            f'Logits must be [B, M, C] = {expected} for these branches, got {list(logits.shape)}: '
            'one logit for each image, branch and channel.'
        )


def total(branches: List[Tensor]) -> Tensor:
    """Sum the branches: M tensors [B, C, H, W], or `Branches` -> [B, C, H, W]."""
    if not torch.jit.is_scripting() and isinstance(branches, Branches):
        branches = branches.unpack()
    return reference.total(branches)


def fuse(branches: List[Tensor]) -> Tensor:
    """Sum the branches and average the sum over space.

    Equations 1 and 2 of "Selective Kernel Networks" (arXiv:1903.06586).

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape, or `Branches`.

    Returns:
        The descriptor [B, C], in the branches' dtype.

    Raises:
        ValueError: If there is no branch, or one that is not 4-dimensional, or the shapes differ.
    """
    if torch.jit.is_scripting():
        _check_branches(branches)
        return reference.fuse(branches)
    else:
        given = _as_branches(branches)
        if not (given.observed and torch.is_grad_enabled()) and runs_kernels(given.tensors, radix=given.radix):
            return _fuse_by_kernel(given)
        if _runs_eager(given.tensors):
            return eager.fuse(given)
        return reference.fuse(given.unpack())


def select(branches: List[Tensor], logits: Tensor, gate: str = 'softmax', overwrite: bool = False) -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Equation 5 of "Selective Kernel Networks" (arXiv:1903.06586), and of "ResNeSt" (arXiv:2004.08955), which takes
    the sigmoid where there is one branch: the softmax would weigh it by 1.

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape, or `Branches`.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.
        overwrite: Without gradients, let the result take the memory of `Branches` that are private, which are not to
            be used any more.

    Returns:
        The selected features [B, C, H, W], in the branches' dtype.

    Raises:
        ValueError: If `fuse` would refuse the branches, the logits are not [B, M, C], or there is no such gate.
    """
    if torch.jit.is_scripting():
        _check_branches(branches)
        _check_logits(branches, 1, logits, gate)
        return reference.select(branches, logits, gate)
    else:
        given = _as_branches(branches)
        if not torch.jit.is_tracing():
            _check_logits(given.tensors, given.radix, logits, gate)  # type: ignore[arg-type]
        if not (given.observed and torch.is_grad_enabled()) and runs_kernels(given.tensors, logits, radix=given.radix):
            return _select_by_kernel(given, logits, gate)
        if _runs_eager(given.tensors) and runs_eagerly(logits):
            return eager.select(given, logits, gate, overwrite=overwrite)
        return reference.select(given.unpack(), logits, gate)


torch.fx.wrap('fuse')
torch.fx.wrap('select')
