"""Fuse and select in plain PyTorch: equations 1, 2 and 5 of arXiv:1903.06586, for any number of branches.

Every other implementation must agree with them, forward and backward. They do not check their arguments: callers go
through `timm_sk.ops`.
"""

from collections.abc import Sequence
from typing import List

import torch.nn.functional as F
from torch import Tensor


def unpack(packed: Sequence[Tensor], radix: int) -> List[Tensor]:
    """The R branches that lie side by side in each tensor: [B, R * C, H, W] each -> M x [B, C, H, W], views."""
    if radix == 1:
        return list(packed)
    chunked = [tensor.chunk(radix, dim=1) for tensor in packed]
    return [branches[r] for branches in chunked for r in range(radix)]  # a tracer's value cannot be iterated


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


def apply_epilogue(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> List[Tensor]:
    """Add a bias to each channel, then activate: M x [B, C, H, W], M x [C] -> M x [B, C, H, W].

    Args:
        raws: M x [B, C, H, W].
        biases: M x [C].
        activation: '', 'relu' or 'relu6'.
    """
    branches = []
    for m, raw in enumerate(raws):
        branch = raw + biases[m][:, None, None]
        if activation == 'relu':
            branch = branch.relu()
        elif activation == 'relu6':
            branch = branch.clamp(0, 6)
        branches.append(branch)
    return branches


def two_branches(
    x: Tensor, weights: List[Tensor], biases: List[Tensor], stride: int, dilations: List[int], groups: int
) -> List[Tensor]:
    """Grouped 3x3 convolutions of one input, with bias and ReLU: [B, C_in, H, W] -> M x [B, C, H', W'].

    The reference of `kernels.two_branch`, together with `fuse` and `select`.

    Args:
        x: Input [B, C_in, H, W].
        weights: M tensors [C, C_in / groups, 3, 3].
        biases: M tensors [C].
        stride: Stride of every branch.
        dilations: Dilation of each branch, which is its padding too.
        groups: Number of groups of every branch.
    """
    return [
        F.conv2d(x, weights[m], biases[m], stride, dilation, dilation, groups).relu()
        for m, dilation in enumerate(dilations)
    ]
