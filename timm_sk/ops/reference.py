"""The law: fuse and select in plain PyTorch, equations 1, 2 and 5 of arXiv:1903.06586 for any number of branches.

Every kernel must agree with `fuse` and `select`, forward and backward. They do not check their arguments:
callers go through `timm_sk.ops`.
"""

from typing import List

import torch.nn.functional as F
from torch import Tensor


def total(branches: List[Tensor]) -> Tensor:
    """Sum the branches: M x [B, C, H, W] -> [B, C, H, W]."""
    result = branches[0]
    for branch in branches[1:]:
        result = result + branch
    return result


def fuse(branches: List[Tensor]) -> Tensor:
    """Sum the branches and average over space: M x [B, C, H, W] -> [B, C]."""
    return total(branches).mean(dim=(2, 3))


def attention(logits: Tensor, gate: str = 'softmax') -> Tensor:
    """Turn logits into the branches' weights, [B, M, C] -> [B, M, C]: a softmax over the branches, or a sigmoid."""
    return logits.sigmoid() if gate == 'sigmoid' else logits.softmax(dim=1)


def select(branches: List[Tensor], logits: Tensor, gate: str = 'softmax') -> Tensor:
    """Weigh the branches by their attention: M x [B, C, H, W], [B, M, C] -> [B, C, H, W]."""
    weights = attention(logits, gate).to(branches[0].dtype)[:, :, :, None, None]  # [B, M, C, 1, 1]
    selected = branches[0] * weights[:, 0]
    for m in range(1, len(branches)):
        selected = selected + branches[m] * weights[:, m]
    return selected


def normed(raws: List[Tensor], scales: List[Tensor], shifts: List[Tensor], activation: str) -> List[Tensor]:
    """Make branches of raw outputs: scale and shift each channel, then activate, M x [B, C, H, W].

    Args:
        raws: M x [B, C, H, W].
        scales: M x [C], or an empty list for a scale of 1.
        shifts: M x [C].
        activation: '', 'relu' or 'relu6'.
    """
    branches = []
    for m, raw in enumerate(raws):
        branch = raw * scales[m][:, None, None] if scales else raw
        branch = branch + shifts[m][:, None, None]
        if activation == 'relu':
            branch = branch.relu()
        elif activation == 'relu6':
            branch = branch.clamp(0, 6)
        branches.append(branch)
    return branches


def fuse_normed(raws: List[Tensor], scales: List[Tensor], shifts: List[Tensor], activation: str) -> Tensor:
    """`fuse` of the branches that `normed` makes: M x [B, C, H, W] -> [B, C]."""
    return fuse(normed(raws, scales, shifts, activation))


def select_normed(
    raws: List[Tensor], scales: List[Tensor], shifts: List[Tensor], logits: Tensor, gate: str, activation: str
) -> Tensor:
    """`select` among the branches that `normed` makes: M x [B, C, H, W], [B, M, C] -> [B, C, H, W]."""
    return select(normed(raws, scales, shifts, activation), logits, gate)


def two_branches(
    x: Tensor, weights: List[Tensor], biases: List[Tensor], stride: int, dilations: List[int], groups: int
) -> List[Tensor]:
    """Grouped 3x3 convolutions of one input, with bias and ReLU: [B, C_in, H, W] -> M x [B, C, H', W'].

    The law of `kernels.two_branch`, together with `fuse` and `select`.

    Args:
        x: Input [B, C_in, H, W].
        weights: M tensors [C, C_in / groups, 3, 3].
        biases: M tensors [C].
        stride: Of every branch.
        dilations: Dilation of each branch, and its padding.
        groups: Groups of every branch.
    """
    return [
        F.conv2d(x, weights[m], biases[m], stride, dilation, dilation, groups).relu()
        for m, dilation in enumerate(dilations)
    ]
