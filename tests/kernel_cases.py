"""What the kernels are tested on, what they must give, and a proof that they ran."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import pytest
import torch
from filling import make_input
from tiers import deep_except
from torch import Tensor

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

# Of the largest element: a rounding to the dtype, which Triton's interpreter cuts off in bfloat16; in float32 that of
# sums over a few hundred elements.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8 if DEVICE == 'cuda' else 2**-7}
SLACK = 1.05

LAYOUTS = (
    *('contiguous', 'channels last', 'slices', 'slices of channels last', 'every other picture'),  # read where they lie
    *('every other column', 'cropped', 'cropped channels last', 'transposed', 'mixed'),  # copied
)


class Case(NamedTuple):
    """Branches: how many, how many of them in a tensor, of which shape, dtype and layout."""

    count: int
    radix: int
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str


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
    Case(4, 4, (2, 3, 3, 5), torch.float32, 'every other picture'),
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
    pictures, channels, height, width = case.shape
    shape = (pictures, channels * case.radix, height, width)
    values = [make_input(shape, seed=m) + offset for m in range(case.count // case.radix)]
    return [lay_out(x.to(DEVICE, case.dtype), case.layout, index).requires_grad_() for index, x in enumerate(values)]


def lay_out(x: Tensor, layout: str, index: int = 0) -> Tensor:
    """The same values with other strides; what lies between them is NaN."""
    memory_format = torch.channels_last if 'channels last' in layout else torch.contiguous_format
    if layout == 'mixed':
        return x.contiguous(memory_format=(torch.contiguous_format, torch.channels_last)[index % 2])
    if layout == 'transposed':
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    pictures, channels, height, width = x.shape
    if 'slices' in layout:
        room = _nothing(x, (pictures, channels + 3, height, width), memory_format)[:, 2:-1]
    elif layout == 'every other picture':
        room = _nothing(x, (2 * pictures, channels, height, width), memory_format)[1::2]
    elif layout == 'every other column':
        room = _nothing(x, (pictures, channels, height, 2 * width), memory_format)[..., ::2]
    elif 'cropped' in layout:
        room = _nothing(x, (pictures, channels, height, width + 2), memory_format)[..., 1:-1]
    else:
        room = torch.empty_like(x, memory_format=memory_format)
    return room.copy_(x)


def _nothing(x: Tensor, shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    return torch.full(shape, float('nan'), dtype=x.dtype, device=x.device).contiguous(memory_format=memory_format)


def make_logits(case: Case, dtype: torch.dtype | None = None) -> Tensor:
    logits = 2 * make_input((case.shape[0], case.count, case.shape[1]), seed=9)
    return logits.to(DEVICE, dtype or case.dtype).requires_grad_()


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
