"""Which pairs of convolutions `two_branch` supports, the layout of their weights, and the tiling of the output."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import DTYPES, runs_on
from .strides import describe

NARROWEST, WIDEST = 16, 128  # channels of a block: limits of matrix units and of registers
LIMIT = 2**31  # of the elements of an image, whose offsets are 32-bit, and of the programs of a launch
_FAVOURED = 32  # channels of 16 bits make a memory transaction of 64 bytes
_ACCUMULATORS = 8192  # float32 of a branch in one program of 128 threads, so 128 registers of each for both
_WIDEST_STEP = 32  # input channels of one product


def block_count(in_channels: int, out_channels: int, groups: int) -> int | None:
    """Choose the number of blocks into which the groups of a convolution merge.

    The narrowest blocks of 32 channels or more, which have the fewest zeros; else the narrowest of 16 or more.

    Returns:
        A divisor of `groups` that leaves a block 16 to 128 input and output channels, or None.
    """
    fitting = {}
    for count in (count for count in range(1, groups + 1) if groups % count == 0):
        narrower, wider = sorted((in_channels // count, out_channels // count))
        if narrower >= NARROWEST and wider <= WIDEST:
            fitting[count] = narrower
    favoured = [count for count, narrower in fitting.items() if narrower >= _FAVOURED]
    return max(favoured or fitting, default=None)


def can_take(
    in_channels: int,
    out_channels: int,
    groups: int,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    paddings: Sequence[Sequence[int]],
    dilations: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> bool:
    """Whether the kernel supports two convolutions of one input.

    Args:
        in_channels: Channels of the input.
        out_channels: Output channels of each convolution.
        groups: Groups of each convolution.
        kernel_size: Height and width of the kernels.
        stride: Strides of each convolution.
        paddings: Paddings of height and width, a pair for each convolution.
        dilations: Dilations of height and width, a pair for each convolution.
        dtype: Floating-point type of input, weights and biases.
    """
    return (
        tuple(kernel_size) == (3, 3)
        and tuple(stride) in ((1, 1), (2, 2))
        and len(paddings) == len(dilations) == 2
        and all(tuple(padding) == tuple(dilation) for padding, dilation in zip(paddings, dilations, strict=True))
        and all(height == width for height, width in dilations)
        and dtype in DTYPES
        and block_count(in_channels, out_channels, groups) is not None
    )


def pack(weights: Sequence[Tensor], blocks: int) -> Tensor:
    """Lay out the weights for the kernel.

    Args:
        weights: Two [C, K, 3, 3], of convolutions whose groups are merged into `blocks`.
        blocks: Number of blocks of K input and N = C / blocks output channels.

    Returns:
        [2, blocks, 9, K, N], contiguous.
    """
    channels, width = weights[0].shape[:2]
    shape = (blocks, channels // blocks, width, 9)
    return torch.stack([weight.reshape(shape).permute(0, 3, 2, 1) for weight in weights]).contiguous()


def check(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, dilations: Sequence[int], logits: Tensor | None = None
) -> None:
    """Check the arguments of the kernel.

    Args:
        x: [B, C_in, H, W].
        weight: [2, blocks, 9, K, N].
        bias: [2, C].
        stride: Stride of both convolutions.
        dilations: Dilation of each convolution.
        logits: [B, 2, C] or None.

    Raises:
        ValueError: If the kernel does not support an argument.
    """
    given = [x, weight, bias] if logits is None else [x, weight, bias, logits]
    fits = x.dim() == 4 and weight.dim() == 5 and x.shape[2] > 0 and x.shape[3] > 0
    if fits:
        branches, blocks, taps, k, n = weight.shape
        fits = (
            (branches, blocks * k, taps) == (2, x.shape[1], 9)
            and NARROWEST <= min(k, n) <= max(k, n) <= WIDEST
            and x.shape[2] * x.shape[3] * blocks * max(k, n) < LIMIT
            and list(bias.shape) == [2, blocks * n]
            and (logits is None or (list(logits.shape) == [len(x), 2, blocks * n] and logits.is_floating_point()))
        )
    alike = x.dtype in DTYPES and {x.dtype} == {weight.dtype, bias.dtype} and len({t.device for t in given}) == 1
    if not (fits and alike and runs_on(x.device) and stride in (1, 2) and len(dilations) == 2 and min(dilations) > 0):
        raise ValueError(
            'The kernel takes, on one GPU and in one dtype (float32, bfloat16 or float16), an input [B, C_in, H, W] of '
            'fewer than 2^31 elements per image, a weight [2, blocks, 9, K, N] of `pack` with K and N from '
            f'{NARROWEST} to {WIDEST}, a bias [2, C], logits [B, 2, C] or none, stride 1 or 2, and two dilations from '
            f'1; got {describe(given)}, stride {stride} and dilations {list(dilations)}.'
        )


def output_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Height and width of the branches."""
    return (height - 1) // stride + 1, (width - 1) // stride + 1


class Tiling(NamedTuple):
    """How the output is divided among programs.

    Attributes:
        tile_h: Rows of a tile, a power of two.
        tile_w: Columns of a tile, a power of two.
        block_k: Input channels of a product, a power of two.
        block_n: Output channels of a program, a power of two; those beyond the block's are zeros.
        down: Number of tiles along the height.
        across: Number of tiles along the width.
        stages: Number of pipeline stages.
    """

    tile_h: int
    tile_w: int
    block_k: int
    block_n: int
    down: int
    across: int
    stages: int

    @property
    def tiles(self) -> int:
        """Number of tiles of an image."""
        return self.down * self.across


@lru_cache(maxsize=512)
def tiling(height: int, width: int, k: int, n: int, element_size: int) -> Tiling:
    """Choose tiles for branches [height, width] of blocks with K = `k` and N = `n` that exceed them least.

    Of equal ones the larger tile wins, which reuses its weights more often; then the squarer, for its smaller halo.
    """
    block_n = _power_of_two(n)
    largest = min(128, _ACCUMULATORS // block_n)
    shapes = [(rows, pixels // rows) for pixels in sorted({64, largest}) for rows in (4, 8, 16) if pixels // rows >= 4]

    def cost(shape: tuple[int, int]) -> tuple[int, int, int]:
        rows, columns = shape
        return -(-height // rows) * -(-width // columns) * rows * columns, -rows * columns, rows + columns

    rows, columns = min(shapes, key=cost)
    block_k = min(_power_of_two(k), _WIDEST_STEP)
    # at most 96 KiB of shared memory: 24 KiB a stage for 16-bit operands, twice that for float32
    stages = 3 if element_size == 2 else 2
    return Tiling(rows, columns, block_k, block_n, -(-height // rows), -(-width // columns), stages)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
