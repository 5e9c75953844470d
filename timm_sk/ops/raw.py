"""Branches that are a convolution's raw output, whose bias and activation the kernels apply as they read it."""

from collections.abc import Iterable, Sequence

from torch import Tensor


class RawBranches(list[Tensor]):
    """Branches [B, C, H, W] before bias and activation, for `timm_sk.ops` alone; made where `runs_kernels` says so.

    Attributes:
        shifts: [C], one for each.
        activation: '', 'relu' or 'relu6'.
    """

    def __init__(self, branches: Iterable[Tensor], shifts: Sequence[Tensor], activation: str) -> None:
        super().__init__(branches)
        self.shifts = list(shifts)
        self.activation = activation
