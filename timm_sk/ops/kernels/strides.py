"""Checks of the kernels' arguments, and the strides with which they read tensors in place."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..conv_bias_act import ACTIVATIONS


class Strides(NamedTuple):
    """Strides in elements; pixels are numbered row by row."""

    image: int
    channel: int
    pixel: int


def require(branches: Sequence[Tensor], *others: Tensor) -> None:
    """Refuse tensors that the kernels do not support.

    Args:
        branches: Branches of `fuse` or `select`.
        others: Further tensors that the kernel reads, in any of `kernels.DTYPES`.

    Raises:
        ValueError: If there is no branch or too many; if they are not of one supported dtype, one shape [B, C, H, W]
            and one device with kernels; or if the others are of an unsupported dtype or on another device.
    """
    tensors = (*branches, *others)
    first = tensors[0] if tensors else torch.empty(0)
    supported = (
        1 <= len(branches) <= kernels.MAX_BRANCHES
        and first.dim() == 4
        and (first.device.type == 'cuda' or (kernels.INTERPRETED and first.device.type == 'cpu'))
        and all(branch.shape == first.shape and branch.dtype == first.dtype for branch in branches)
        and all(tensor.dtype in kernels.DTYPES and tensor.device == first.device for tensor in tensors)
    )
    if not supported:
        raise ValueError(
            f'The kernels take 1 to {kernels.MAX_BRANCHES} branches [B, C, H, W] of one shape and dtype (float32, '
            f'bfloat16 or float16), all tensors on one CUDA device, got {describe(tensors)}: call timm_sk.ops.'
        )


def describe(tensors: Sequence[Tensor]) -> str:
    """Shape, dtype and device of each tensor, for messages."""
    return '; '.join(f'{list(tensor.shape)} {tensor.dtype} on {tensor.device}' for tensor in tensors) or 'none'


def require_logits(branches: Sequence[Tensor], logits: Tensor, gate: str) -> int:
    """Check logits and gate.

    Args:
        branches: M tensors [B, C, H, W], or tensors [B, R * C, H, W] of R branches each.
        logits: [B, M, C].
        gate: 'softmax' or 'sigmoid'.

    Returns:
        R.

    Raises:
        ValueError: If `require` refuses the tensors, the logits have another shape, or the gate is unknown.
    """
    require(branches, logits)
    if gate not in ('softmax', 'sigmoid'):
        raise ValueError(f"The gate must be 'softmax' or 'sigmoid', got '{gate}'.")
    images, channels = branches[0].shape[:2]
    radix = logits.shape[1] // len(branches) if logits.dim() == 3 else 0
    if radix < 1 or list(logits.shape) != [images, radix * len(branches), channels // radix] or channels % radix:
        raise ValueError(
            f'Logits must be [B, M, C] for {len(branches)} tensors of shape {list(branches[0].shape)}, which hold '
            f'M / {len(branches)} branches each; got {list(logits.shape)}.'
        )
    return radix


NO_BACKWARD = 'Branches with a deferred bias have no backward pass in the kernels: call them under torch.no_grad().'


def require_epilogue(branches: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> None:
    """Check deferred biases and activation.

    Raises:
        ValueError: If there are biases, but not one [C] for each branch [B, C, H, W], or the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"The activation must be '', 'relu' or 'relu6', got '{activation}'.")
    if biases and len(biases) != len(branches):
        raise ValueError(f'There must be one bias for each of the {len(branches)} branches, got {len(biases)}.')
    for bias in biases:
        require(branches, bias)
        if list(bias.shape) != [branches[0].shape[1]]:
            raise ValueError(f'Biases must be [C] = {[branches[0].shape[1]]}, got {list(bias.shape)}.')


def in_slices(packed: Sequence[Tensor], radix: int) -> list[Tensor]:
    """The branches that are packed in the channels of each tensor, as views.

    Raises:
        ValueError: If the radix does not divide the channels, or there are too many branches.
    """
    if radix == 1:
        return list(packed)
    if radix < 1 or packed[0].shape[1] % radix or radix * len(packed) > kernels.MAX_BRANCHES:
        raise ValueError(
            f'The radix must divide the {packed[0].shape[1]} channels, and {len(packed)} times the radix be at most '
            f'{kernels.MAX_BRANCHES}, got {radix}.'
        )
    return [branch for tensor in packed for branch in tensor.chunk(radix, dim=1)]


def readable(
    branches: Sequence[Tensor], memory_format: torch.memory_format | None = None
) -> tuple[tuple[Tensor, ...], Strides]:
    """Tensors with equal strides that a kernel can read.

    Contiguous and channels-last tensors, and slices of their batch or channels, are read in place. Tensors with other
    strides, or whose strides differ, are copied.

    Args:
        branches: Tensors of one shape.
        memory_format: Memory format of the result; None for that of the first tensor.
    """
    wanted = memory_format or format_of(branches[0])
    strides = strides_of(branches[0])
    alike = all(strides_of(branch) == strides for branch in branches[1:])
    if strides is not None and alike and format_of(branches[0]) == wanted:
        return tuple(branches), strides
    copies = tuple(branch.contiguous(memory_format=wanted) for branch in branches)
    return copies, dense_strides(branches[0].shape, wanted)


def strides_of(x: Tensor) -> Strides | None:
    """Strides of a tensor whose pixels are evenly spaced and whose pixels or channels are adjacent; else None."""
    _, channels, height, width = x.shape
    image, channel, row, pixel = x.stride()
    if width == 1:
        pixel = row
    elif height != 1 and row != width * pixel:
        return None
    if height * width == 1:
        pixel = 1
    if channels == 1:
        channel = 1
    return Strides(image, channel, pixel) if 1 in (channel, pixel) else None


def dense_strides(shape: Sequence[int], memory_format: torch.memory_format) -> Strides:
    """The strides of a dense tensor [B, C, H, W] in a memory format."""
    _, channels, height, width = shape
    pixels = height * width
    if memory_format == torch.channels_last:
        return Strides(channels * pixels, 1, channels)
    return Strides(channels * pixels, pixels, 1)


def format_of(x: Tensor) -> torch.memory_format:
    """Memory format of a tensor, or of the tensor that it is a slice of."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1
    return torch.channels_last if channels_last else torch.contiguous_format
