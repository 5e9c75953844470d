"""`timm_sk::fuse`: fused[b, c] = 1 / (H W) * sum over m, h, w of branch_m[b, c, h, w].

For inference, branch_m may be activation(x_m[b, c, h, w] + bias_m[c]), made in float32 as x_m is read, so that no
complete branch is ever in memory.

Each branch is read once, M * B * C * H * W elements, and B * C numbers are written. Sums are in float32 and in a fixed
order: where too few programs would run, several share an image's pixels, and their sums are added in a second step. The
backward pass moves nothing: the gradient is a view of B * C numbers, spread over space.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .device_functions import columns, features, place
from .launcher import launch, shares, tile
from .strides import NO_BACKWARD, in_slices, readable, require, require_epilogue


@triton.jit
def _fuse_kernel(
    sums,  # [B, shares, C]
    branches,  # tuple of M
    biases,  # tuple of M x [C], or an empty one
    channels,
    pixels,
    share_pixels,
    channel_blocks,
    shares,
    image_stride,
    channel_stride,
    pixel_stride,
    weight,  # of each element, 1 / (H W)
    COUNT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    image, block, share = place(tl.program_id(0), channel_blocks, shares)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    bias = columns(biases, channel, is_channel, COUNT)
    start = image * image_stride + channel[:, None] * channel_stride
    total = tl.full([BLOCK_C, BLOCK_S], 0.0, tl.float32)
    first = share * share_pixels
    for begin in range(first, min(first + share_pixels, pixels), BLOCK_S):
        pixel = (begin + tl.arange(0, BLOCK_S)).to(tl.int64)
        offsets = start + pixel[None, :] * pixel_stride
        mask = is_channel[:, None] & (pixel < pixels)[None, :]
        for m in tl.static_range(COUNT):
            total += features(branches[m], offsets, mask, bias, m, ACTIVATION)
    row = (image * shares + share) * channels
    tl.store(sums + row + channel, tl.sum(total, axis=1) * weight, mask=is_channel)


@torch.library.custom_op('timm_sk::fuse', mutates_args=())
def fuse(branches: Sequence[Tensor], radix: int, biases: Sequence[Tensor], activation: str) -> Tensor:
    """Sum the branches and average over space.

    Args:
        branches: 1 to 4 tensors [B, radix * C, H, W] of one dtype, shape and device; `readable` may copy them.
        radix: Branches in each tensor, side by side in its channels.
        biases: [C] for each branch, which the kernel adds before the activation, without gradients; or none.
        activation: '', 'relu' or 'relu6', with biases.

    Returns:
        [B, C], in the branches' dtype.

    Raises:
        ValueError: If an argument is none of these.
    """
    require(branches)
    slices = in_slices(branches, radix)
    require_epilogue(slices, biases, activation)
    if not slices[0].numel():
        return reference.fuse(slices)
    images, channels, height, width = slices[0].shape
    pixels, device, dtype = height * width, slices[0].device, slices[0].dtype
    tensors, strides = readable(slices)
    block = tile(channels, pixels, channels_last=strides.pixel != 1, held=1, device=device)
    channel_blocks = triton.cdiv(channels, block.channels)
    share_count, share_pixels = shares(images * channel_blocks, pixels, block, device)
    shape = (images, share_count, channels)
    sums = torch.empty(shape, dtype=dtype if share_count == 1 else torch.float32, device=device)
    launch(
        'fuse_bias_act' if biases else 'fuse',
        _fuse_kernel,
        images * channel_blocks * share_count,
        device,
        sums,
        tensors,
        tuple(bias.contiguous() for bias in biases),
        channels,
        pixels,
        share_pixels,
        channel_blocks,
        share_count,
        *strides,
        1 / pixels,
        COUNT=len(tensors),
        ACTIVATION=activation,
        BLOCK_C=block.channels,
        BLOCK_S=block.pixels,
    )
    return sums.view(images, channels) if share_count == 1 else sums.sum(dim=1).to(dtype)


@fuse.register_fake
def _(branches: Sequence[Tensor], radix: int, biases: Sequence[Tensor], activation: str) -> Tensor:
    require(branches)
    images, channels = branches[0].shape[:2]
    return branches[0].new_empty([images, channels // radix])


def _keep_shape(ctx: Any, inputs: tuple[Sequence[Tensor], int, Sequence[Tensor], str], output: Tensor) -> None:
    branches, radix, biases, _ = inputs
    if biases:
        raise ValueError(NO_BACKWARD)
    ctx.count, ctx.shape, ctx.radix = len(branches), branches[0].shape, radix


def _spread(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, list[Tensor], None]:
    height, width = ctx.shape[2:]
    share = (grad / max(height * width, 1)).repeat(1, ctx.radix)[:, :, None, None]
    return [share.expand(ctx.shape) for _ in range(ctx.count)], None, [], None


fuse.register_autograd(_spread, setup_context=_keep_shape)
