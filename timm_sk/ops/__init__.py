"""The two operations of SK units and of split attention: `fuse` the branches into one descriptor, `select` among them.

This is the only place that decides which implementation runs: the Triton kernels of `kernels` on a CUDA device, also in
graphs of `torch.compile`; elsewhere `eager` for tensors that are computed at once, and `reference` for what others
export, trace, transform or compile. Both functions are leaves to `torch.fx`, so that their argument checks survive
symbolic tracing.
"""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor

from . import eager, reference
from .branches import NO_EPILOGUE, BatchNormReLUState, Branches, Epilogue, join
from .dispatch import runs_eagerly, runs_kernels
from .eager import batch_norm_relu

__all__ = [
    'BatchNormReLUState',
    'Branches',
    'Epilogue',
    'batch_norm_relu',
    'fuse',
    'join',
    'runs_eagerly',
    'runs_kernels',
    'select',
]


def _implementation(branches: Branches, logits: Tensor | None = None) -> str:
    """Choose 'kernels', 'eager' or 'reference', which alone promotes dtypes."""
    needs_graph = torch.is_grad_enabled() and (branches.observed or branches.epilogue is not None)
    if not needs_graph and runs_kernels(branches.tensors, logits, radix=branches.radix):
        return 'kernels'
    dtype = branches.tensors[0].dtype
    is_eager = runs_eagerly(*branches.tensors, logits) and all(tensor.dtype == dtype for tensor in branches.tensors)
    return 'eager' if is_eager else 'reference'


def _check_branches(branches: Sequence[Tensor]) -> None:
    if isinstance(branches, Tensor):
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
    """Wrap the branches in one value; check them unless `torch.jit.trace` runs."""
    given = branches if isinstance(branches, Branches) else Branches(branches)
    if not torch.jit.is_tracing():
        _check_branches(given.tensors)
    return given


def _check_logits(tensors: Sequence[Tensor], radix: int, logits: Tensor, gate: str) -> None:
    if gate not in ('softmax', 'sigmoid'):
        raise ValueError(f"The gate must be 'softmax' or 'sigmoid', got '{gate}'.")
    expected = [tensors[0].shape[0], len(tensors) * radix, tensors[0].shape[1] // radix]
    if list(logits.shape) != expected:
        raise ValueError(
            f'Logits must be [B, M, C] = {expected} for these branches, got {list(logits.shape)}: '
            'one logit for each image, branch and channel.'
        )


def fuse(branches: Sequence[Tensor] | Branches) -> Tensor:
    """Sum the branches and average the sum over space.

    Equations 1 and 2 of "Selective Kernel Networks" (arXiv:1903.06586).

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape, or `Branches`.

    Returns:
        The descriptor [B, C], in the branches' dtype.

    Raises:
        ValueError: If there is no branch, or one that is not 4-dimensional, or the shapes differ.
    """
    given = _as_branches(branches)
    implementation = _implementation(given)
    if implementation == 'kernels':
        from .kernels import fuse as by_kernel  # needs Triton

        return by_kernel.fuse(given.tensors, given.radix, *(given.epilogue or NO_EPILOGUE))
    return eager.fuse(given) if implementation == 'eager' else reference.fuse(given.unpack())


def select(
    branches: Sequence[Tensor] | Branches, logits: Tensor, gate: str = 'softmax', *, in_place: bool = False
) -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Equation 5 of "Selective Kernel Networks" (arXiv:1903.06586), and of "ResNeSt" (arXiv:2004.08955), which takes
    the sigmoid where there is one branch: the softmax would weigh it by 1.

    Args:
        branches: M >= 1 tensors [B, C, H, W] of one shape, or `Branches`.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.
        in_place: Without gradients, let the result take the memory of `Branches` that are private. These must not be
            used afterwards.

    Returns:
        The selected features [B, C, H, W], in the branches' dtype.

    Raises:
        ValueError: If `fuse` would refuse the branches, the logits are not [B, M, C], or there is no such gate.
    """
    given = _as_branches(branches)
    if not torch.jit.is_tracing():
        _check_logits(given.tensors, given.radix, logits, gate)
    implementation = _implementation(given, logits)
    if implementation == 'kernels':
        from .kernels import select as by_kernel  # needs Triton

        return by_kernel.select(given.tensors, logits, gate, *(given.epilogue or NO_EPILOGUE))
    if implementation == 'eager':
        return eager.select(given, logits, gate, in_place=in_place)
    return reference.select(given.unpack(), logits, gate)


torch.fx.wrap('fuse')
torch.fx.wrap('select')
