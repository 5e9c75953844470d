"""Whether two models compute the same, which is asked before either is timed.

The bounds stand between two measurements on the CPU with `random_weights.fill`, over skresnet18, skresnet34,
skresnext50_32x4d and resnest50d of 64² and 128² pixels: what rounding alone does (timm's own model in the other memory
format, or with its input scaled by 1 + 1e-6), and what an error does (one hundredth of one weight tensor times 1.5).

| float32, training | rounding | that error | bound |
|---|---|---|---|
| output in train mode, of its largest value | up to 1.6e-5 | from 8e-4 | 1e-4 |
| loss | up to 1e-6 | from 1e-5 | 1e-4 |
| running statistics, relative norm | up to 6e-7 | from 1e-3 | 1e-5 |
| gradients, relative norm | up to 1.4e-2 | from 7e-2 | 5e-2 |

At lower precision the yardstick is the baseline: a variant may be no farther from the float32 baseline than twice the
baseline's own distance at that precision, plus one rounding step of the dtype. Gradients are not judged there: those of
timm's own nets in bfloat16 are 0.5 to 1.2 of their norm away from float32's. Instead a variant that is not compiled has
to pass in float32 too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from .steps import Inference, Step

BOUNDS = {'output': 1e-4, 'loss': 1e-4, 'running statistics': 1e-5, 'gradients': 5e-2}
SANE = 0.5  # a baseline farther from its own float32 output than half the largest value is no yardstick


@dataclass(frozen=True)
class Agreement:
    """The verdict, with the comparison that came nearest to its bound or beyond.

    Attributes:
        compared: What was compared.
        difference: How far it is from the reference, relative.
        bound: How far it may be.
    """

    compared: str
    difference: float
    bound: float

    @property
    def holds(self) -> bool:
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


def observe(step: Step, first: int | None = None) -> dict[str, Tensor]:
    """Run a step on its first input set, without changing a parameter, and keep what can be compared, in float32.

    Args:
        step: The step.
        first: Compare only this many images. Inference computes the whole batch, for which it was deployed.
    """
    with exact_float32():
        if isinstance(step, Inference):
            return {'output': step()[:first].float().clone()}
        loss, output = step.gradients(first=first)
    buffers = [b for name, b in sorted(step.module.named_buffers(), key=itemgetter(0)) if 'running' in name]
    parameters = [p for _, p in sorted(step.module.named_parameters(), key=itemgetter(0))]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    step.optimizer.zero_grad()
    return {
        'output': output.float(),
        'loss': loss.float(),
        'running statistics': torch.cat([buffer.flatten().float() for buffer in buffers]),
        'gradients': torch.cat([gradient.flatten().float() for gradient in gradients]),
    }


def differences(observed: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative distances: outputs in their largest value, everything else in the Euclidean norm."""
    distances = {}
    for compared, expected in reference.items():
        change, largest = observed[compared] - expected, torch.inf if compared == 'output' else 2
        distances[compared] = float(change.norm(largest) / expected.norm(largest))
    return distances


def judge(found: Mapping[str, float], *, dtype: torch.dtype, baseline: Mapping[str, float] | None = None) -> Agreement:
    """Compare differences from the float32 reference with their bounds.

    Args:
        found: The variant's, from `differences`.
        dtype: In which it ran.
        baseline: Those of the baseline in the same dtype; None if this is the baseline.
    """
    verdicts = []
    for compared, difference in found.items():
        if dtype is torch.float32:
            bound = BOUNDS[compared]
        elif compared == 'gradients':
            continue
        else:
            bound = SANE if baseline is None else 2 * baseline[compared] + torch.finfo(dtype).eps
        verdicts.append(Agreement(compared, difference, bound))
    broken = [verdict for verdict in verdicts if not verdict.holds]
    return broken[0] if broken else max(verdicts, key=lambda verdict: verdict.difference / verdict.bound)
