"""A convolution with bias, sum with a shortcut, and activation.

`convolve` chooses the implementation: separate steps, or in inference on a CPU with channels-last inputs oneDNN's fused
convolution. That takes 5.9 ms instead of 7.2 with a ReLU, and 10.5 instead of 12.2 with sum and ReLU, for 128 to 256
channels at 56x56, batch 8, on two cores. It is slower in contiguous format, where folded nets took 1.02 to 1.1 times as
long, and for single small images, since it reorders the weights at each call: 28 ms instead of 20 for skresnet18 at
64x64. For these torch has kernels of its own.

`convolve` is a leaf to `torch.fx`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from .dispatch import runs_eagerly

ACTIVATIONS = ('', 'relu', 'relu6')
_SMALL = 20480  # elements of a single image, up to which torch does not use oneDNN

# Names and arguments of the activations in oneDNN.
_ONEDNN_NAMES = {'': ('none', []), 'relu': ('relu', []), 'relu6': ('hardtanh', [0.0, 6.0])}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = '',
    shortcut: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Convolve, add the bias and the shortcut, activate.

    Args:
        x: Input [B, in_channels, H, W].
        weight: [out_channels, in_channels / groups, kernel height, kernel width].
        bias: [out_channels], or None.
        stride: Strides of height and width.
        padding: Paddings of height and width.
        dilation: Dilations of height and width.
        groups: Groups of the convolution.
        activation: One of `ACTIVATIONS`; '' for none.
        shortcut: Tensor in the output's shape that is added before the activation, or None.
        packed: The weight as `pack` returns it, or None.

    Returns:
        A new tensor [B, out_channels, H', W'].
    """
    if _is_plain_inference(x, weight, bias, shortcut):
        if not _takes_torchs_kernel(x, groups, packed):
            fused = _onednn(x, weight, bias, (stride, padding, dilation, groups), activation, shortcut, packed)
            if fused is not None:
                return fused
        elif bias is not None and max(dilation) > 1:  # which the kernel adds channel by channel, half of its time
            plane = bias[:, None, None]
            shortcut, bias = plane if shortcut is None else shortcut + plane, None
    out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if shortcut is not None:
        out += shortcut
    if activation == 'relu':
        return F.relu(out, inplace=True)
    if activation == 'relu6':
        return F.relu6(out, inplace=True)
    return out


torch.fx.wrap('convolve')


def pack(
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor | None:
    """Reorder a weight for oneDNN, which otherwise does it at each call: 6.9 -> 5.6 ms at 7x7.

    For inputs in channels last. Other shapes than `input_shape` give the same values, but may be slower. It takes as
    much memory as the weight.

    Returns:
        An opaque tensor for `convolve`, which can be neither saved nor copied; None where oneDNN does not compute.
    """
    operators = _onednn_operators()
    if weight.device.type != 'cpu' or operators is None or operators.pack is None:
        return None
    if weight.dtype not in operators.dtypes:
        return None
    return operators.pack(weight.detach(), padding, stride, dilation, groups, input_shape)


class _OneDnn(NamedTuple):
    convolve: Any
    convolve_and_add: Any
    pack: Any
    dtypes: frozenset[torch.dtype]


@lru_cache(maxsize=1)
def _onednn_operators() -> _OneDnn | None:
    """The operators with which torch.compile fuses convolutions on CPUs; None if this torch has none."""
    namespace = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(namespace, '_convolution_pointwise'):
        return None
    both = namespace._convolution_pointwise
    if not {'default', 'binary'} <= set(both.overloads()):
        return None
    dtypes = {torch.float32}
    for dtype, check in ((torch.bfloat16, '_is_mkldnn_bf16_supported'), (torch.float16, '_is_mkldnn_fp16_supported')):
        if hasattr(namespace, check) and getattr(namespace, check)():  # by this processor
            dtypes.add(dtype)
    return _OneDnn(
        both.default, both.binary, getattr(namespace, '_reorder_convolution_weight', None), frozenset(dtypes)
    )


def _is_plain_inference(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> bool:
    """Whether values on a CPU are all that is asked for; others know no operators of oneDNN."""
    given = (x, weight, bias, shortcut)
    if not runs_eagerly(*given) or x.device.type != 'cpu':
        return False
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
        return False
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled('cpu')


def _takes_torchs_kernel(x: Tensor, groups: int, packed: Tensor | None) -> bool:
    """Whether an input is a single small image and the weight is not packed."""
    return x.shape[0] == groups == 1 and x.numel() <= _SMALL and not (packed is not None and _is_nhwc(x))


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numbers: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    activation: str,
    shortcut: Tensor | None,
    packed: Tensor | None,
) -> Tensor | None:
    """`convolve` in one pass of oneDNN, or None for unsupported arguments, which the operators do not check."""
    stride, padding, dilation, groups = numbers
    operators = _onednn_operators()
    if operators is None or x.dtype not in operators.dtypes or x.dim() != 4 or not x.numel():
        return None
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return None
    if x.shape[1] != weight.shape[1] * groups:
        return None
    if not _is_nhwc(x):  # else the output of a packed weight would be channels last all the same
        return None
    if packed is not None:
        weight = packed
    name, arguments = _ONEDNN_NAMES[activation]
    if shortcut is None:
        return operators.convolve(x, weight, bias, padding, stride, dilation, groups, name, arguments, '')
    # elsewhere the operator itself takes separate steps, of which bfloat16 lacks one
    if groups > 1 or activation == 'relu6' or shortcut.dtype != x.dtype or not _is_nhwc(shortcut):
        return None
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    if list(shortcut.shape) != [x.shape[0], weight.shape[0], *size]:
        return None
    unary = activation or None
    return operators.convolve_and_add(
        x, shortcut, weight, bias, padding, stride, dilation, groups, 'add', 1.0, unary, [], None
    )


def _is_nhwc(x: Tensor) -> bool:
    """Whether a tensor is laid out with the channels last, and only so."""
    return x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and x.is_contiguous(memory_format=torch.channels_last)
