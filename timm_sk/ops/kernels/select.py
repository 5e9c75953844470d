"""`timm_sk::select`: selected[b, c, h, w] = sum over m of weight[b, m, c] * branch_m[b, c, h, w].

The weights are the softmax of the logits over m, or their sigmoids, made in float32 inside the kernel. Each branch is
read once and the result written once: M + 1 times B * C * H * W elements. For inference the kernel may add bias and
activation to the branches, as `timm_sk::fuse`.

`timm_sk::select_backward` gives the gradients. With grad the result's gradient,

    branch gradient_m = weight_m * grad
    slope_m = sum over h, w of grad * branch_m
    logit gradient_m = weight_m * (slope_m - sum over k of weight_k * slope_k), or slope_m * weight_m * (1 - weight_m)

in one pass: grad and each branch are read once, each branch's gradient is written once, 2 M + 1 times B * C * H * W
elements. Every program adds up its part of the slopes in float32 and writes it to a place of its own; a second kernel
adds the parts in their order and applies the gate. There are no atomics, so gradients are the same each time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import is_batched
from ..eager import select_backward as differentiable_backward
from .device_functions import columns, features, gate_weights, place
from .launcher import launch, shares, tile
from .strides import (
    NO_BACKWARD,
    dense_strides,
    format_of,
    in_slices,
    readable,
    require,
    require_epilogue,
    require_logits,
)


@triton.jit
def _select_kernel(
    selected,
    branches,  # tuple of M
    biases,  # tuple of M x [C], or an empty one
    logits,  # [B, M, C]
    channels,
    pixels,
    channel_blocks,
    pixel_blocks,
    image_stride,
    channel_stride,
    pixel_stride,
    out_image_stride,
    out_channel_stride,
    out_pixel_stride,
    COUNT: tl.constexpr,
    SIGMOID: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    image, block, pixel_block = place(tl.program_id(0), channel_blocks, pixel_blocks)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = pixel_block.to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_channel = channel < channels
    mask = is_channel[:, None] & (pixel < pixels)[None, :]
    offsets = image * image_stride + channel[:, None] * channel_stride + pixel[None, :] * pixel_stride
    weights = gate_weights(logits, image, channel, is_channel, channels, COUNT, SIGMOID)
    bias = columns(biases, channel, is_channel, COUNT)
    total = weights[0][:, None] * features(branches[0], offsets, mask, bias, 0, ACTIVATION)
    for m in tl.static_range(1, COUNT):
        total += weights[m][:, None] * features(branches[m], offsets, mask, bias, m, ACTIVATION)
    out = image * out_image_stride + channel[:, None] * out_channel_stride + pixel[None, :] * out_pixel_stride
    tl.store(selected + out, total, mask=mask)


@torch.library.custom_op('timm_sk::select', mutates_args=())
def select(branches: Sequence[Tensor], logits: Tensor, gate: str, biases: Sequence[Tensor], activation: str) -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Second derivatives are the reference's.

    Args:
        branches: M = 1 to 4 tensors [B, C, H, W] of one dtype, shape and device; or fewer tensors [B, R * C, H, W]
            that hold R branches each, side by side in their channels. `readable` may copy them.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.
        biases: [C] for each branch, which the kernel adds before the activation, without gradients; or none.
        activation: '', 'relu' or 'relu6', with biases.

    Returns:
        [B, C, H, W], in the branches' dtype and the first one's memory format.

    Raises:
        ValueError: If an argument is none of these.
    """
    slices = in_slices(branches, require_logits(branches, logits, gate))
    require_epilogue(slices, biases, activation)
    images, channels, height, width = slices[0].shape
    pixels, device, count = height * width, slices[0].device, len(slices)
    selected = torch.empty_like(slices[0], memory_format=format_of(slices[0]))
    if not selected.numel():
        return selected
    tensors, strides = readable(slices)
    block = tile(channels, pixels, channels_last=strides.pixel != 1, held=count, device=device)
    channel_blocks, pixel_blocks = triton.cdiv(channels, block.channels), triton.cdiv(pixels, block.pixels)
    launch(
        'select_bias_act' if biases else 'select',
        _select_kernel,
        images * channel_blocks * pixel_blocks,
        device,
        selected,
        tensors,
        tuple(bias.contiguous() for bias in biases),
        logits.contiguous(),
        channels,
        pixels,
        channel_blocks,
        pixel_blocks,
        *strides,
        *dense_strides(selected.shape, format_of(selected)),
        COUNT=count,
        SIGMOID=gate == 'sigmoid',
        ACTIVATION=activation,
        BLOCK_C=block.channels,
        BLOCK_S=block.pixels,
    )
    return selected


@select.register_fake
def _(branches: Sequence[Tensor], logits: Tensor, gate: str, biases: Sequence[Tensor], activation: str) -> Tensor:
    first = in_slices(branches, require_logits(branches, logits, gate))[0]
    return torch.empty_like(first, memory_format=format_of(first))


def _keep_inputs(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, str, Sequence[Tensor], str], output: Tensor) -> None:
    branches, logits, ctx.gate, biases, _ = inputs
    if biases:
        raise ValueError(NO_BACKWARD)
    ctx.save_for_backward(*branches, logits)


def _backward(ctx: Any, grad: Tensor) -> tuple[Sequence[Tensor], Tensor, None, list[Tensor], None]:
    *branches, logits = ctx.saved_tensors
    if torch.is_grad_enabled() or is_batched(grad):
        radix = logits.shape[1] // len(branches)
        return *differentiable_backward(grad, branches, radix, logits, ctx.gate), None, [], None
    return *select_backward(grad, branches, logits, ctx.gate), None, [], None


select.register_autograd(_backward, setup_context=_keep_inputs)


@triton.jit
def _backward_kernel(
    gradients,  # tuple of M
    slopes,  # [B, shares, M, C]
    grad,
    branches,  # tuple of M
    logits,  # [B, M, C]
    channels,
    pixels,
    share_pixels,
    channel_blocks,
    shares,
    grad_image_stride,
    grad_channel_stride,
    grad_pixel_stride,
    image_stride,
    channel_stride,
    pixel_stride,
    out_image_stride,
    out_channel_stride,
    out_pixel_stride,
    COUNT: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    image, block, share = place(tl.program_id(0), channel_blocks, shares)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    weights = gate_weights(logits, image, channel, is_channel, channels, COUNT, SIGMOID)
    grad_start = image * grad_image_stride + channel[:, None] * grad_channel_stride
    start = image * image_stride + channel[:, None] * channel_stride
    out_start = image * out_image_stride + channel[:, None] * out_channel_stride
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.full([BLOCK_C, BLOCK_S], 0.0, tl.float32),)
    first = share * share_pixels
    for begin in range(first, min(first + share_pixels, pixels), BLOCK_S):
        pixel = (begin + tl.arange(0, BLOCK_S)).to(tl.int64)[None, :]
        mask = is_channel[:, None] & (pixel < pixels)
        incoming = tl.load(grad + grad_start + pixel * grad_pixel_stride, mask=mask, other=0.0).to(tl.float32)
        added = ()
        for m in tl.static_range(COUNT):
            x = tl.load(branches[m] + start + pixel * pixel_stride, mask=mask, other=0.0).to(tl.float32)
            added = added + (sums[m] + incoming * x,)
            tl.store(gradients[m] + out_start + pixel * out_pixel_stride, weights[m][:, None] * incoming, mask=mask)
        sums = added
    for m in tl.static_range(COUNT):
        row = ((image * shares + share) * COUNT + m) * channels
        tl.store(slopes + row + channel, tl.sum(sums[m], axis=1), mask=is_channel)


@triton.jit
def _gate_backward_kernel(
    gradient,  # [B, M, C]
    slopes,  # [B, shares, M, C]
    logits,  # [B, M, C]
    channels,
    channel_blocks,
    shares,
    COUNT: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, block, _ = place(tl.program_id(0), channel_blocks, 1)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    weights = gate_weights(logits, image, channel, is_channel, channels, COUNT, SIGMOID)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.full([BLOCK_C], 0.0, tl.float32),)
    for share in range(0, shares):
        added = ()
        for m in tl.static_range(COUNT):
            row = ((image * shares + share) * COUNT + m) * channels
            added = added + (sums[m] + tl.load(slopes + row + channel, mask=is_channel, other=0.0),)
        sums = added
    mean = tl.full([BLOCK_C], 0.0, tl.float32)
    if not SIGMOID:
        for m in tl.static_range(COUNT):
            mean += weights[m] * sums[m]
    for m in tl.static_range(COUNT):
        change = weights[m] * (1.0 - weights[m]) * sums[m] if SIGMOID else weights[m] * (sums[m] - mean)
        tl.store(gradient + (image * COUNT + m) * channels + channel, change, mask=is_channel)


@torch.library.custom_op('timm_sk::select_backward', mutates_args=())
def select_backward(grad: Tensor, branches: Sequence[Tensor], logits: Tensor, gate: str) -> tuple[list[Tensor], Tensor]:
    """The gradients of `select`'s branches and logits.

    Args:
        grad: Gradient of the result [B, C, H, W], in its dtype.
        branches: Those of `select`.
        logits: Those of `select`.
        gate: That of `select`.

    Returns:
        A gradient for each branch, in the first one's memory format, and the logits' gradient [B, M, C].

    Raises:
        ValueError: If `select` would refuse them, or the gradient is not beside the result in shape, dtype and device.
    """
    slices = in_slices(branches, require_logits(branches, logits, gate))
    require([grad, slices[0]])
    gradients = [torch.empty_like(branch, memory_format=format_of(branches[0])) for branch in branches]
    logits_gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not grad.numel():
        return gradients, logits_gradient.zero_()
    images, channels, height, width = slices[0].shape
    pixels, device, count = height * width, grad.device, len(slices)
    tensors, strides = readable(slices)
    (grad,), grad_strides = readable([grad], format_of(slices[0]))
    block = tile(channels, pixels, channels_last=strides.pixel != 1, held=count + 1, device=device)
    channel_blocks = triton.cdiv(channels, block.channels)
    share_count, share_pixels = shares(images * channel_blocks, pixels, block, device)
    slopes = torch.empty((images, share_count, count, channels), dtype=torch.float32, device=device)
    constants = dict(COUNT=count, SIGMOID=gate == 'sigmoid', BLOCK_C=block.channels)
    logits = logits.contiguous()
    launch(
        'select_backward',
        _backward_kernel,
        images * channel_blocks * share_count,
        device,
        tuple(in_slices(gradients, count // len(gradients))),
        slopes,
        grad,
        tensors,
        logits,
        channels,
        pixels,
        share_pixels,
        channel_blocks,
        share_count,
        *grad_strides,
        *strides,
        *dense_strides(gradients[0].shape, format_of(gradients[0])),
        BLOCK_S=block.pixels,
        **constants,
    )
    launch(
        'gate_backward',
        _gate_backward_kernel,
        images * channel_blocks,
        device,
        logits_gradient,
        slopes,
        logits,
        channels,
        channel_blocks,
        share_count,
        **constants,
    )
    return gradients, logits_gradient


@select_backward.register_fake
def _(grad: Tensor, branches: Sequence[Tensor], logits: Tensor, gate: str) -> tuple[list[Tensor], Tensor]:
    require_logits(branches, logits, gate)
    gradients = [torch.empty_like(branch, memory_format=format_of(branches[0])) for branch in branches]
    return gradients, torch.empty_like(logits, memory_format=torch.contiguous_format)
