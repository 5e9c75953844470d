"""`timm_sk::select`: selected[b, c, h, w] = sum over m of weight[b, m, c] * branch_m[b, c, h, w].

The weights are the softmax of the logits over m, or their sigmoids, made in float32 inside the kernel. Each branch is
read once and the result written once: M + 1 times B * C * H * W elements.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import is_batched
from ..eager import select_backward as differentiable_backward
from .launch import launch, tile
from .operands import dense_strides, format_of, in_slices, readable, require_logits
from .select_backward import select_backward
from .tiles import columns, features, gate_weights, place


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
    picture_stride,
    channel_stride,
    pixel_stride,
    out_picture_stride,
    out_channel_stride,
    out_pixel_stride,
    COUNT: tl.constexpr,
    SIGMOID: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    picture, block, pixel_block = place(tl.program_id(0), channel_blocks, pixel_blocks)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = pixel_block.to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_channel = channel < channels
    mask = is_channel[:, None] & (pixel < pixels)[None, :]
    offsets = picture * picture_stride + channel[:, None] * channel_stride + pixel[None, :] * pixel_stride
    weights = gate_weights(logits, picture, channel, is_channel, channels, COUNT, SIGMOID)
    bias = columns(biases, channel, is_channel, COUNT)
    total = weights[0][:, None] * features(branches[0], offsets, mask, bias, 0, ACTIVATION)
    for m in tl.static_range(1, COUNT):
        total += weights[m][:, None] * features(branches[m], offsets, mask, bias, m, ACTIVATION)
    out = picture * out_picture_stride + channel[:, None] * out_channel_stride + pixel[None, :] * out_pixel_stride
    tl.store(selected + out, total, mask=mask)


def launch_select(
    branches: Sequence[Tensor],
    logits: Tensor,
    gate: str,
    biases: Sequence[Tensor] = (),
    activation: str = '',
) -> Tensor:
    """Weigh the branches, each with bias and activation where they are given.

    Args:
        branches: M checked tensors [B, C, H, W], not empty.
        logits: [B, M, C].
        gate: 'softmax' or 'sigmoid'.
        biases: M tensors [C], or none.
        activation: '', 'relu' or 'relu6'.

    Returns:
        [B, C, H, W], in the branches' dtype and the first one's memory format.
    """
    pictures, channels, height, width = branches[0].shape
    pixels, device = height * width, branches[0].device
    selected = torch.empty_like(branches[0], memory_format=format_of(branches[0]))
    tensors, strides = readable(branches)
    count = len(tensors)
    block = tile(channels, pixels, channels_last=strides.pixel != 1, held=count, device=device)
    channel_blocks, pixel_blocks = triton.cdiv(channels, block.channels), triton.cdiv(pixels, block.pixels)
    launch(
        'select_bias_act' if biases else 'select',
        _select_kernel,
        pictures * channel_blocks * pixel_blocks,
        device,
        selected,
        tensors,
        tuple(biases),
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


@torch.library.custom_op('timm_sk::select', mutates_args=())
def select(branches: Sequence[Tensor], logits: Tensor, gate: str) -> Tensor:
    """Sum the branches, each channel weighed by a softmax over the branches or by a sigmoid of its own.

    Contiguous tensors, those with channels last, and slices of either are read where they lie; tensors with other
    strides, or among which the strides differ, are copied first. Second derivatives are the reference's.

    Args:
        branches: M = 1 to 4 tensors [B, C, H, W] of one dtype, shape and device; or fewer tensors [B, R * C, H, W]
            that hold R branches each, side by side in their channels.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.

    Returns:
        [B, C, H, W], in the branches' dtype and the first one's memory format.

    Raises:
        ValueError: If they are not such tensors, or there is no such gate.
    """
    slices = in_slices(branches, require_logits(branches, logits, gate))
    return launch_select(slices, logits, gate) if slices[0].numel() else torch.empty_like(slices[0])


@select.register_fake
def _(branches: Sequence[Tensor], logits: Tensor, gate: str) -> Tensor:
    first = in_slices(branches, require_logits(branches, logits, gate))[0]
    return torch.empty_like(first, memory_format=format_of(first))


def _keep_inputs(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, str], output: Tensor) -> None:
    branches, logits, ctx.gate = inputs
    ctx.save_for_backward(*branches, logits)


def _backward(ctx: Any, grad: Tensor) -> tuple[Sequence[Tensor | None], Tensor | None, None]:
    *branches, logits = ctx.saved_tensors
    if torch.is_grad_enabled() or is_batched(grad):
        radix = logits.shape[1] // len(branches)
        return *differentiable_backward(grad, branches, radix, logits, ctx.gate), None
    return *select_backward(grad, branches, logits, ctx.gate), None


select.register_autograd(_backward, setup_context=_keep_inputs)
