"""The law: fuse and select in plain PyTorch, equations 1, 2 and 5 of arXiv:1903.06586 for any number of branches.

Every kernel must agree with these two functions, forward and backward. They do not check their arguments:
callers go through `timm_sk.ops`.
"""

from typing import List

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


def select(branches: List[Tensor], logits: Tensor) -> Tensor:
    """Weigh the branches by a softmax over them: M x [B, C, H, W], [B, M, C] -> [B, C, H, W]."""
    weights = logits.softmax(dim=1).to(branches[0].dtype)[:, :, :, None, None]  # [B, M, C, 1, 1]
    selected = branches[0] * weights[:, 0]
    for m in range(1, len(branches)):
        selected = selected + branches[m] * weights[:, m]
    return selected
