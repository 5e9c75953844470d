"""Inputs of the kernels' tests, tolerances, and counts of launches."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import pytest
import torch
from random_weights import make_input
from tiers import deep_except
from torch import Tensor

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

# Relative to the largest element: a rounding to the dtype, which Triton's interpreter truncates in bfloat16; in float32
# that of sums over a few hundred elements.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8 if DEVICE == 'cuda' else 2**-7}
SLACK = 1.05

LAYOUTS = (
    *('contiguous', 'channels last', 'slices', 'slices of channels last', 'every other image'),  # read where they lie
    *('every other column', 'cropped', 'cropped channels last', 'transposed', 'mixed'),  # copied
)


class Case(NamedTuple):
    """Branches: how many, how many of them in a tensor, of which shape, dtype and layout."""

    count: int
    radix: int
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str


PLAIN = Case(2, 1, (2, 5, 7, 6), torch.float32, 'contiguous')

# Shapes that fill no tile, and some that are a single row, column or pixel.
NARROW = [
    Case(1, 1, (2, 5, 7, 6), torch.float32, 'contiguous'),
    Case(2, 1, (2, 5, 7, 6), torch.float32, 'channels last'),
    Case(2, 1, (1, 6, 5, 7), torch.bfloat16, 'contiguous'),
    Case(2, 2, (1, 5, 3, 7), torch.float32, 'channels last'),
    Case(2, 2, (2, 3, 5, 5), torch.float16, 'contiguous'),
    Case(3, 1, (2, 3, 5, 5), torch.float32, 'slices'),
    Case(3, 1, (1, 5, 3, 7), torch.bfloat16, 'slices of channels last'),
    Case(4, 1, (2, 3, 3, 5), torch.float32, 'mixed'),
    Case(4, 4, (2, 3, 3, 5), torch.float32, 'every other image'),
    Case(4, 2, (1, 7, 1, 9), torch.bfloat16, 'channels last'),
    Case(2, 1, (2, 3, 5, 3), torch.float32, 'every other column'),
    Case(2, 1, (1, 3, 5, 3), torch.float32, 'cropped'),
    Case(2, 1, (1, 3, 5, 3), torch.float16, 'cropped channels last'),
    Case(2, 1, (1, 3, 5, 4), torch.float16, 'transposed'),
    Case(2, 1, (3, 9, 1, 1), torch.float32, 'contiguous'),
    Case(2, 1, (1, 1, 9, 1), torch.float32, 'channels last'),
]
_SHAPES = ((8, 64, 56, 56), (3, 200, 13, 11), (2, 2048, 7, 7), (65, 3, 5, 3), (1, 1, 113, 97))
_KINDS = ((1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2))
# A sample of all combinations, each of which Triton would compile for seconds.
WIDE = random.Random(0).sample(
    [Case(*kind, shape, *stored) for kind, shape, *stored in product(_KINDS, _SHAPES, TOLERANCE, LAYOUTS)], 60
)
CASES = [*deep_except(NARROW[:5], NARROW), *(pytest.param(case, marks=pytest.mark.gpu) for case in WIDE)]


def name_of(case: object) -> str | None:
    if not isinstance(case, Case):
        return None
    return f'{case.count}:{case.radix}-{"x".join(map(str, case.shape))}-{str(case.dtype)[6:]}-{case.layout}'


def make_tensors(case: Case, *, offset: float = 0.5) -> list[Tensor]:
    """Tensors [B, radix * C, H, W] that hold the branches of a case and need gradients, of a mean other than zero."""
    batch, channels, height, width = case.shape
    shape = (batch, channels * case.radix, height, width)
    values = [make_input(shape, seed=m) + offset for m in range(case.count // case.radix)]
    return [lay_out(x.to(DEVICE, case.dtype), case.layout, index).requires_grad_() for index, x in enumerate(values)]


def lay_out(x: Tensor, layout: str, index: int = 0) -> Tensor:
    """The same values with other strides; what lies between them is NaN."""
    memory_format = torch.channels_last if 'channels last' in layout else torch.contiguous_format
    if layout == 'mixed':
        return x.contiguous(memory_format=(torch.contiguous_format, torch.channels_last)[index % 2])
    if layout == 'transposed':
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    batch, channels, height, width = x.shape
    shape, part = {
        'slices': ((batch, channels + 3, height, width), (slice(None), slice(2, -1))),
        'every other image': ((2 * batch, channels, height, width), (slice(1, None, 2),)),
        'every other column': ((batch, channels, height, 2 * width), (..., slice(None, None, 2))),
        'cropped': ((batch, channels, height, width + 2), (..., slice(1, -1))),
    }.get(layout.partition(' of')[0].removesuffix(' channels last'), (x.shape, (...,)))
    memory = torch.full(shape, float('nan'), dtype=x.dtype, device=x.device).contiguous(memory_format=memory_format)
    return memory[part].copy_(x)


def make_logits(case: Case, dtype: torch.dtype | None = None) -> Tensor:
    logits = 2 * make_input((case.shape[0], case.count, case.shape[1]), seed=9)
    return logits.to(DEVICE, dtype or case.dtype).requires_grad_()


def make_biases(count: int, channels: int) -> list[Tensor]:
    """[C] for each branch, as large as the features, so that each activation and its absence differ."""
    return [make_input((channels,), seed=30 + m).to(DEVICE) for m in range(count)]


def fuse(tensors: Sequence[Tensor], radix: int = 1, biases: Sequence[Tensor] = (), activation: str = '') -> Tensor:
    """The operator `timm_sk::fuse`, imported when it is called."""
    from timm_sk.ops.kernels import fuse

    return fuse.fuse(tensors, radix, biases, activation)


def select(
    tensors: Sequence[Tensor], logits: Tensor, gate: str, biases: Sequence[Tensor] = (), activation: str = ''
) -> Tensor:
    """The operator `timm_sk::select`, imported when it is called."""
    from timm_sk.ops.kernels import select

    return select.select(tensors, logits, gate, biases, activation)


def exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values in float64, as new leaves."""
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]


def branches_of(tensors: Sequence[Tensor], radix: int) -> list[Tensor]:
    return [branch for tensor in tensors for branch in tensor.chunk(radix, dim=1)]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
    """Compare with float64 to within the dtype's tolerance of the largest element; NaN differs from everything."""
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.shape == wanted.shape
        if wanted.numel():
            error, largest = (float(values.detach().abs().max()) for values in (ours.double() - wanted, wanted))
            assert error <= SLACK * TOLERANCE[dtype or ours.dtype] * largest, f'{error} of {largest}'


@contextmanager
def launched(**expected: int) -> Iterator[None]:
    """Require that exactly these kernels are launched, so often."""
    from timm_sk.ops.kernels.launcher import launches

    before = launches.copy()
    yield
    assert dict(launches - before) == expected, dict(launches - before)
