"""`timm_sk::fuse_bias_act` and `timm_sk::select_bias_act`: fuse and select of what convolutions write, for inference.

With branch_m = activation(raw_m[b, c, h, w] + bias_m[c]), made in float32 as it is read:

    fused[b, c] = 1 / (H W) * sum over m, h, w of branch_m[b, c, h, w]
    selected[b, c, h, w] = sum over m of weight[b, m, c] * branch_m[b, c, h, w]

Each raw output is read once by either, and no branch is ever in memory: M and M + 1 times B * C * H * W elements, where
bias and activation as steps of their own move 2 M more each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..conv_bias_act import ACTIVATIONS
from .fuse import launch_fuse
from .select import launch_select
from .strides import format_of, require, require_logits


def fuse_bias_act(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    """`reference.fuse` of `reference.apply_epilogue`, without gradients.

    Args:
        raws: M = 1 to 4 tensors [B, C, H, W] of one dtype, shape and device, read as `fuse` reads branches.
        biases: M tensors [C].
        activation: '', 'relu' or 'relu6'.

    Returns:
        The descriptor [B, C], in the dtype of the raw outputs.

    Raises:
        ValueError: If they are not such tensors, there is no such activation, or a gradient would be needed.
    """
    _require_no_gradient(*raws, *biases)
    return _fuse_bias_act(raws, biases, activation)


def select_bias_act(
    raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str, logits: Tensor, gate: str
) -> Tensor:
    """`reference.select` of `reference.apply_epilogue`, without gradients.

    Args:
        raws: M tensors, as for `fuse_bias_act`.
        biases: M tensors [C].
        activation: '', 'relu' or 'relu6'.
        logits: [B, M, C], before the gate.
        gate: 'softmax' or 'sigmoid'.

    Returns:
        [B, C, H, W], in the dtype of the raw outputs and the first one's memory format.

    Raises:
        ValueError: If they are not such tensors, there is no such gate or activation, or a gradient would be needed.
    """
    _require_no_gradient(*raws, *biases, logits)
    return _select_bias_act(raws, biases, activation, logits, gate)


@torch.library.custom_op('timm_sk::fuse_bias_act', mutates_args=())
def _fuse_bias_act(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    _require_epilogue(raws, biases, activation)
    if not raws[0].numel():
        return reference.fuse(list(raws))
    return launch_fuse(raws, _dense(biases), activation)


@_fuse_bias_act.register_fake
def _(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    _require_epilogue(raws, biases, activation)
    return raws[0].new_empty(raws[0].shape[:2])


@torch.library.custom_op('timm_sk::select_bias_act', mutates_args=())
def _select_bias_act(
    raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str, logits: Tensor, gate: str
) -> Tensor:
    _require_epilogue(raws, biases, activation)
    _require_logits(raws, logits, gate)
    if not raws[0].numel():
        return torch.empty_like(raws[0], memory_format=format_of(raws[0]))
    return launch_select(raws, logits, gate, _dense(biases), activation)


@_select_bias_act.register_fake
def _(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str, logits: Tensor, gate: str) -> Tensor:
    _require_epilogue(raws, biases, activation)
    _require_logits(raws, logits, gate)
    return torch.empty_like(raws[0], memory_format=format_of(raws[0]))


def _dense(vectors: Sequence[Tensor]) -> list[Tensor]:
    return [vector.contiguous() for vector in vectors]


def _require_epilogue(raws: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> None:
    require(raws, *biases)
    if activation not in ACTIVATIONS:
        raise ValueError(f"The activation must be '', 'relu' or 'relu6', got '{activation}'.")
    shape = [raws[0].shape[1]]
    if len(biases) != len(raws):
        raise ValueError(f'There must be one bias for each of the {len(raws)} raw outputs, got {len(biases)}.')
    for bias in biases:
        if list(bias.shape) != shape:
            raise ValueError(f'Biases must be [C] = {shape}, got {list(bias.shape)}.')


def _require_logits(raws: Sequence[Tensor], logits: Tensor, gate: str) -> None:
    if require_logits(raws, logits, gate) != 1:
        raise ValueError(f'Logits must be [B, M, C] for {len(raws)} raw outputs, got {list(logits.shape)}.')


def _require_no_gradient(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            'The folded kernels have no backward pass, got a tensor that requires a gradient: call them under '
            'torch.no_grad(), or compute the branches and call timm_sk.ops.fuse and timm_sk.ops.select.'
        )
