"""Whether two models compute the same, which is checked before either is timed.

The bounds lie between two measurements on the CPU with `random_weights.fill`, over skresnet18, skresnet34,
skresnext50_32x4d and resnest50d at 64x64 and 128x128 pixels: the effect of rounding (timm's own model in the other
memory format, or with its input times 1 + 1e-6), and the effect of an error (one hundredth of one weight tensor times
1.5).

| float32, training | rounding | that error | bound |
|---|---|---|---|
| output in train mode, of its largest value | up to 1.6e-5 | from 8e-4 | 1e-4 |
| loss | up to 1e-6 | from 1e-5 | 1e-4 |
| running statistics, relative norm | up to 6e-7 | from 1e-3 | 1e-5 |
| gradients, relative norm | up to 1.4e-2 | from 7e-2 | 5e-2 |

At lower precision a variant may be no farther from the float32 baseline than twice the baseline's own distance at that
precision, plus one rounding step of the dtype. Gradients are not compared there: those of timm's own models in bfloat16
are 0.5 to 1.2 of their norm away from float32's. Instead a variant that is not compiled must pass in float32 too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

BOUNDS = {'output': 1e-4, 'loss': 1e-4, 'running statistics': 1e-5, 'gradients': 5e-2}
BASELINE_BOUND = 0.5  # of the largest value: a baseline farther from its own float32 output is unusable


@dataclass(frozen=True)
class Comparison:
    """Name of the compared values, their relative difference from the reference, and the largest one allowed."""

    compared: str
    difference: float
    bound: float

    @property
    def passes(self) -> bool:
        return self.difference <= self.bound  # false for NaN


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep CUDA from rounding float32 products to TF32, which its convolutions do by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def differences(observed: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative differences: of outputs by the largest value, of everything else by the Euclidean norm."""
    found = {}
    for compared, expected in reference.items():
        change, order = observed[compared] - expected, torch.inf if compared == 'output' else 2
        found[compared] = float(change.norm(order) / expected.norm(order))
    return found


def compare(
    found: Mapping[str, float], *, dtype: torch.dtype, baseline: Mapping[str, float] | None = None
) -> Comparison:
    """The comparison of a variant's differences that is closest to its bound, or beyond it.

    The differences are from the float32 reference, and so are the baseline's in that dtype; None for the baseline.
    """
    comparisons = []
    for compared, difference in found.items():
        if dtype is torch.float32:
            bound = BOUNDS[compared]
        elif compared == 'gradients':
            continue
        else:
            bound = BASELINE_BOUND if baseline is None else 2 * baseline[compared] + torch.finfo(dtype).eps
        comparisons.append(Comparison(compared, difference, bound))
    return max(comparisons, key=lambda one: (not one.passes, one.difference / one.bound))
