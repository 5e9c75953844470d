"""The two operations of SK units and of split attention: `fuse` the branches into one descriptor, `select` among them.

`total`, the plain sum of the branches, is the control without selection.

This is the only place that decides which implementation runs. Both functions are leaves to `torch.fx`, so that
their argument checks survive symbolic tracing.
"""

from typing import List

import torch
import torch.fx
from torch import Tensor

from . import reference
from .reference import total

__all__ = ['fuse', 'select', 'total']


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
    return reference.fuse(branches)


def select(branches: List[Tensor], logits: Tensor, gate: str = 'softmax') -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Equation 5 of "Selective Kernel Networks" (arXiv:1903.06586), and of "ResNeSt" (arXiv:2004.08955), which takes
    the sigmoid where there is one branch: the softmax would weigh it by 1.

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.

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
    return reference.select(branches, logits, gate)


torch.fx.wrap('fuse')
torch.fx.wrap('select')
