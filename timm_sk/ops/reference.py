"""Fuse and select in plain PyTorch: equations 1, 2 and 5 of arXiv:1903.06586, for any number of branches.

Every other implementation must agree with them, forward and backward. Arguments are checked by `timm_sk.ops`, not here.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def unpack(packed: Sequence[Tensor], radix: int) -> list[Tensor]:
    """The R branches that are packed in each tensor: [B, R * C, H, W] each -> M x [B, C, H, W], views."""
    if radix == 1:
        return list(packed)
    chunked = [tensor.chunk(radix, dim=1) for tensor in packed]
    return [branches[r] for branches in chunked for r in range(radix)]  # a tracer's value cannot be iterated


def fuse(branches: list[Tensor]) -> Tensor:
    """Sum the branches and average over space: M x [B, C, H, W] -> [B, C]."""
    return reduce(torch.add, branches).mean(dim=(2, 3))


def gate_weights(logits: Tensor, gate: str = 'softmax') -> Tensor:
    """Turn logits into the branches' weights, [B, M, C] -> [B, M, C]: a softmax over the branches, or a sigmoid."""
    return logits.sigmoid() if gate == 'sigmoid' else logits.softmax(dim=1)


def select(branches: list[Tensor], logits: Tensor, gate: str = 'softmax') -> Tensor:
    """Weigh the branches by their attention: M x [B, C, H, W], [B, M, C] -> [B, C, H, W]."""
    weights = gate_weights(logits, gate).to(branches[0].dtype)[:, :, :, None, None]  # [B, M, C, 1, 1]
    selected = branches[0] * weights[:, 0]
    for m in range(1, len(branches)):
        selected = selected + branches[m] * weights[:, m]
    return selected


def apply_epilogue(convolved: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> list[Tensor]:
    """Add a bias to each channel, then activate.

    Args:
        convolved: M x [B, C, H, W].
        biases: M x [C].
        activation: '', 'relu' or 'relu6'.

    Returns:
        M x [B, C, H, W].
    """
    branches = []
    for m, x in enumerate(convolved):
        branch = x + biases[m].to(x.dtype)[:, None, None]  # as a convolution under autocast adds it
        if activation == 'relu':
            branch = branch.relu()
        elif activation == 'relu6':
            branch = branch.clamp(0, 6)
        branches.append(branch)
    return branches
