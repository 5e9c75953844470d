"""The two operations of SK units and of split attention: `fuse` the branches into one descriptor, `select` among them.

`total`, the plain sum of the branches, is the control without selection.

This is the only place that decides which implementation runs: the Triton kernels of `kernels` on a CUDA device, also in
graphs of `torch.compile`; elsewhere `lean` for tensors that are computed at once, and the law of `reference` for what
others export, trace, transform or compile. Both functions are leaves to `torch.fx`, so that their argument checks
survive symbolic tracing.
"""

from collections.abc import Sequence
from typing import Any, List

import torch
import torch.autograd.forward_ad
import torch.fx
from torch import Tensor

from . import kernels, lean, reference
from .raw import RawBranches
from .reference import total

__all__ = ['fuse', 'runs_eagerly', 'runs_kernels', 'runs_two_branch_kernel', 'select', 'total']


@torch.compiler.assume_constant_result  # Dynamo of torch 2.11 takes torch's own function for a constant True
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def runs_eagerly(x: Any) -> bool:
    """Whether operations on a value are computed at once, by torch's own kernels and torch's own backward pass.

    False for what `torch.compile`, `torch.export`, `torch.fx` and `torch.jit.trace` see, for tensors inside
    `torch.func`'s transforms or with a forward-mode tangent, and for subclasses of tensors, which may mean anything.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad.unpack_dual(x).tangent is None
    )


def runs_kernels(branches: Sequence[Any], logits: Any = None) -> bool:
    """Whether `fuse` and `select` run as Triton kernels on such branches, or on what they are made from.

    Besides what `kernels.takes` asks for, the tensors must run eagerly or be compiled by `torch.compile`, whose graphs
    keep the kernels while `kernels.IN_COMPILED_GRAPHS` says so; what is exported runs anywhere, and so without them.
    """
    tensors = [*branches] if logits is None else [*branches, logits]
    if not all(type(tensor) is Tensor for tensor in tensors) or not kernels.takes(branches, logits):
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


def _runs_lean(branches: Sequence[Tensor]) -> bool:
    """Whether branches run eagerly and are of one dtype; the law promotes others."""
    return all(runs_eagerly(branch) and branch.dtype == branches[0].dtype for branch in branches)


def _fuse_by_kernel(branches: Sequence[Tensor]) -> Tensor:
    from .kernels import folded, fuse  # of Triton, which is not needed elsewhere

    if isinstance(branches, RawBranches):
        return folded.fuse_normed([*branches], [], branches.shifts, branches.activation)
    wholes = branches.wholes if isinstance(branches, lean.Branches) else branches
    return fuse.fuse(wholes, len(branches) // len(wholes))


def _select_by_kernel(branches: Sequence[Tensor], logits: Tensor, gate: str) -> Tensor:
    from .kernels import folded, select

    if isinstance(branches, RawBranches):
        return folded.select_normed([*branches], [], branches.shifts, logits, gate, branches.activation)
    return select.select(branches.wholes if isinstance(branches, lean.Branches) else branches, logits, gate)


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
                'for branch 0: give their convolutions the same stride, channels and "same" padding.'
            )


def fuse(branches: List[Tensor]) -> Tensor:
    """Sum the branches and average the sum over space.

    Equations 1 and 2 of "Selective Kernel Networks" (arXiv:1903.06586).

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape.

    Returns:
        The descriptor [B, C], in the branches' dtype.

    Raises:
        ValueError: If there is no branch, or one that is not 4-dimensional, or the shapes differ.
    """
    if not torch.jit.is_tracing():
        _check_branches(branches)
    if torch.jit.is_scripting():
        return reference.fuse(branches)
    elif isinstance(branches, RawBranches) or runs_kernels(branches):
        return _fuse_by_kernel(branches)
    elif _runs_lean(branches):
        return lean.fuse(branches)
    else:
        return reference.fuse(branches)


def select(branches: List[Tensor], logits: Tensor, gate: str = 'softmax', overwrite: bool = False) -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Equation 5 of "Selective Kernel Networks" (arXiv:1903.06586), and of "ResNeSt" (arXiv:2004.08955), which takes
    the sigmoid where there is one branch: the softmax would weigh it by 1.

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.
        overwrite: Allow the result to take a branch's memory, where no gradient is recorded: for branches that nobody
            reads afterwards.

    Returns:
        The selected features [B, C, H, W], in the branches' dtype.

    Raises:
        ValueError: If `fuse` would refuse the branches, the logits are not [B, M, C], or there is no such gate.
    """
    if not torch.jit.is_tracing():
        _check_branches(branches)
        if gate not in ('softmax', 'sigmoid'):
            raise ValueError(f"The gate must be 'softmax' or 'sigmoid', got '{gate}'.")
        expected = [branches[0].shape[0], len(branches), branches[0].shape[1]]
        if list(logits.shape) != expected:
            raise ValueError(
                f'Logits must be [B, M, C] = {expected} for these branches, got {list(logits.shape)}: '
                'one logit for each image, branch and channel.'
            )
    if torch.jit.is_scripting():
        return reference.select(branches, logits, gate)
    elif isinstance(branches, RawBranches) or runs_kernels(branches, logits):
        return _select_by_kernel(branches, logits, gate)
    elif _runs_lean(branches) and runs_eagerly(logits):
        return lean.select(branches, logits, gate, overwrite=overwrite)
    else:
        return reference.select(branches, logits, gate)


torch.fx.wrap('fuse')
torch.fx.wrap('select')
