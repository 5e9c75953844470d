"""Two grouped 3x3 convolutions of one input with bias and ReLU, and what an SK unit does with them, as one kernel.

    U_m = relu(conv(x, w_m, dilation d_m, padding d_m) + b_m),  m = 0, 1
    fused = mean over space of U_0 + U_1
    selected = a_0 U_0 + a_1 U_1,  a = softmax over m of the logits

For inference, after norms are folded; there are no gradients. Two forms, equal in value up to rounding:

- store_branches: one launch writes both branches and `fused`; `timm_sk.ops.select` reads them.
- recompute_branches: one launch writes only `fused`; a second one computes the branches again and writes only
  `selected`.

A program computes a tile of output pixels for a block of groups. Groups are merged block-diagonally into blocks of K
input and N output channels, 16 to 128, so that each tap of each branch is a dense product [pixels, K] x [K, N] for the
matrix units. Both branches read the same neighbourhood of the tile, from memory once and from the caches otherwise.
Products are summed in float32. `fused` goes through one partial sum per tile, so that it is the same in every run.

Bytes moved to and from memory, if the caches hold halos and weights: with X = B C_in H W and P = B C H' W' elements of
e bytes, H' = ceil(H / stride), and T tiles per image,

    separate, bias and ReLU in the convolutions' own pass   (2 X +  7 P) e   x twice, U written, read twice, result
    separate, bias and ReLU in a pass of their own each     (2 X + 15 P) e   U read and written twice more
    store_branches                                          (  X +  5 P) e + 8 B T C   x, U written, read once, result
    recompute_branches                                      (2 X +    P) e + 8 B T C   x twice, result

so with X = P: 9, 17, 6 and 3 P e. 8 B T C are the partial sums, written and read. Of the caches, a tile of h x w pixels
asks for (h + 2 d)(w + 2 d) pixels of x at stride 1 (d the larger dilation), each up to 18 times.

Multiply-adds: the separate convolutions do 18 P C_in / G; store_branches does 18 P K, which is K G / C_in times as
many, and recompute_branches 36 P K. Tiles compute pixels beyond the image too (up to h - 1 rows and w - 1 columns), and
channels beyond the block's up to the next power of two.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launcher
from .two_branch_tiling import LIMIT, check, output_size, tiling


@triton.jit
def _neighbours(x, row, column, channel, height, width, channels, in_block):
    """Input at rows and columns [P] and channels [BLOCK_K] of an image [height, width, channels], zero outside."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = (row * width + column) * channels
    return tl.load(x + at[:, None] + channel[None, :], mask=inside[:, None] & in_block[None, :], other=0.0)


@triton.jit
def _activate(products, bias):
    """Add the bias [BLOCK_N] and apply a ReLU that keeps NaN, as torch's."""
    branch = products + bias.to(tl.float32)[None, :]
    return tl.where(branch < 0, 0.0, branch)


@triton.jit
def _two_branch_kernel(
    x,  # [B, H, W, blocks * K]
    weight,  # [2, blocks, 9, K, N]
    bias,  # [2, blocks * N]
    partial,  # [B, tiles, blocks * N] in float32, or None, as all that follow: what is given is written
    branch_0,  # [B, H', W', blocks * N]
    branch_1,
    logits,  # [B, 2, blocks * N], read
    selected,  # [B, H', W', blocks * N]
    blocks,
    tiles,
    tiles_across,
    height,
    width,
    out_height,
    out_width,
    stride,
    dilation_0,
    dilation_1,
    K: tl.constexpr,
    N: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    block = tl.program_id(0) % blocks  # the blocks of a tile in turn, since they share the cache's lines
    place = (tl.program_id(0) // blocks).to(tl.int64)  # of image and tile
    image, tile = place // tiles, (place % tiles).to(tl.int32)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row = (tile // tiles_across) * TILE_H + pixel // TILE_W
    column = (tile % tiles_across) * TILE_W + pixel % TILE_W
    n = tl.arange(0, BLOCK_N)
    in_n = n < N
    in_channels, out_channels = blocks * K, blocks * N

    pixels = x + image * height * width * in_channels
    first = tl.full([TILE_H * TILE_W, BLOCK_N], 0.0, tl.float32)
    second = tl.full([TILE_H * TILE_W, BLOCK_N], 0.0, tl.float32)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for step in range(9 * STEPS):
        tap = step // STEPS
        down, right = tap // 3 - 1, tap % 3 - 1
        k = (step % STEPS) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = k < K
        row_0, column_0 = row * stride + down * dilation_0, column * stride + right * dilation_0
        row_1, column_1 = row * stride + down * dilation_1, column * stride + right * dilation_1
        near = _neighbours(pixels, row_0, column_0, block * K + k, height, width, in_channels, in_k)
        far = _neighbours(pixels, row_1, column_1, block * K + k, height, width, in_channels, in_k)
        of_tap = weight + ((block * 9 + tap) * K + k[:, None]) * N + n[None, :]
        in_tap = in_k[:, None] & in_n[None, :]
        first = tl.dot(near, tl.load(of_tap, mask=in_tap, other=0.0), first, input_precision='ieee')
        of_tap += blocks * 9 * K * N
        second = tl.dot(far, tl.load(of_tap, mask=in_tap, other=0.0), second, input_precision='ieee')
    channel = block * N + n
    first = _activate(first, tl.load(bias + channel, mask=in_n, other=0.0))
    second = _activate(second, tl.load(bias + out_channels + channel, mask=in_n, other=0.0))

    in_image = (row < out_height) & (column < out_width)
    there = in_image[:, None] & in_n[None, :]
    at = image * out_height * out_width * out_channels
    at += ((row * out_width + column) * out_channels)[:, None] + channel[None, :]
    if partial is not None:
        sums = tl.sum(tl.where(in_image[:, None], first + second, 0.0), axis=0)
        tl.store(partial + place * out_channels + channel, sums, mask=in_n)
    if branch_0 is not None:
        tl.store(branch_0 + at, first.to(branch_0.dtype.element_ty), mask=there)
        tl.store(branch_1 + at, second.to(branch_1.dtype.element_ty), mask=there)
    if selected is not None:
        logit_0 = tl.load(logits + image * 2 * out_channels + channel, mask=in_n, other=0.0).to(tl.float32)
        logit_1 = tl.load(logits + (image * 2 + 1) * out_channels + channel, mask=in_n, other=0.0).to(tl.float32)
        share = (1.0 / (1.0 + tl.exp(logit_1 - logit_0)))[None, :]  # a softmax over two
        mixed = share * first + (1.0 - share) * second
        tl.store(selected + at, mixed.to(selected.dtype.element_ty), mask=there)


@torch.library.custom_op(
    'timm_sk::two_branch', mutates_args=(), device_types=('cuda', 'cpu')
)  # 'cpu' in Triton's interpreter
def compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    dilations: Sequence[int],
    logits: Tensor | None,
    store_branches: bool,
) -> list[Tensor]:
    """Both branches, the mean over space of their sum, or the selected features.

    The softmax over the branches, and sums before they are rounded to the input's dtype, are in float32.

    Args:
        x: [B, C_in, H, W], H and W at least 1, on a GPU, or on a CPU under Triton's interpreter. It is copied unless it
            is channels last.
        weight: [2, blocks, 9, K, N] from `two_branch_tiling.pack`, C_in = blocks * K, in the input's dtype.
        bias: [2, C], C = blocks * N, in the input's dtype.
        stride: 1 or 2.
        dilations: Those of the two convolutions, which are their paddings too.
        logits: [B, 2, C] to select, or None to fuse.
        store_branches: Return the branches too, where there are no logits.

    Returns:
        With logits, [selected]; otherwise [fused] or [*branches, fused]. Branches and selected features are
        [B, C, H', W'] in channels last, fused is [B, C], all in the input's dtype.

    Raises:
        ValueError: If an argument is none of these, or an image or the launch is too large for 32-bit offsets.
    """
    check(x, weight, bias, stride, dilations, logits)
    _, blocks, _, k, n = weight.shape
    height, width = output_size(x.shape[2], x.shape[3], stride)
    cut = tiling(height, width, k, n, x.element_size())
    programs = x.shape[0] * cut.tiles * blocks
    if programs >= LIMIT:
        raise ValueError(f'The input {list(x.shape)} needs {programs} programs, 2^31 or more: split the batch.')
    features = _new_features(x, bias, stride, logits, store_branches)
    partial = None
    if logits is None:
        partial = torch.empty(x.shape[0], cut.tiles, bias.shape[1], dtype=torch.float32, device=x.device)
    if programs:
        launcher.launch(
            'two_branch',
            _two_branch_kernel,
            programs,
            x.device,
            x.contiguous(memory_format=torch.channels_last),
            weight.contiguous(),
            bias.contiguous(),
            partial,
            *(features if logits is None and store_branches else (None, None)),
            *((None, None) if logits is None else (logits.contiguous(), *features)),
            blocks,
            cut.tiles,
            cut.across,
            x.shape[2],
            x.shape[3],
            height,
            width,
            stride,
            *dilations,
            K=k,
            N=n,
            TILE_H=cut.tile_h,
            TILE_W=cut.tile_w,
            BLOCK_K=cut.block_k,
            BLOCK_N=cut.block_n,
            num_warps=4,
            num_stages=cut.stages,
        )
    if partial is None:
        return features
    return [*features, (partial.sum(dim=1) / (height * width)).to(x.dtype)]


@compute.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    dilations: Sequence[int],
    logits: Tensor | None,
    store_branches: bool,
) -> list[Tensor]:
    features = _new_features(x, bias, stride, logits, store_branches)
    return features if logits is not None else [*features, x.new_empty(x.shape[0], bias.shape[1])]


def _new_features(x: Tensor, bias: Tensor, stride: int, logits: Tensor | None, store_branches: bool) -> list[Tensor]:
    """New tensors [B, C, H', W'] for the selected features or the branches."""
    size = (x.shape[0], bias.shape[1], *output_size(x.shape[2], x.shape[3], stride))
    count = 1 if logits is not None else 2 * store_branches
    return [torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for _ in range(count)]
