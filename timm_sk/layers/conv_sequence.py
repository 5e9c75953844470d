"""Convolution, norm and activation one after the other, with shortcuts where `can_bypass` allows them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from .bypass import can_bypass, is_plain_batch_norm
from .folded_conv import FoldedConv

# Modules that return new tensors or write into what they are given, and keep none.
_KEEP_NOTHING = {nn.Identity, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU}


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`; without gradients on a CPU, the norm may write into the convolution's output.

    A large new tensor costs its pages as well as its pass: glibc returns the memory of the former one to the system,
    which clears every page anew. On 2 cores, resnest50d in float32, batch 8 at 224x224, took 85,000 page faults in a
    forward pass that kept the convolutions' outputs, and 56,000 in one that writes into them, 8 to 10 % faster.
    """
    features = conv(x)
    if not (
        type(conv) is nn.Conv2d
        and is_plain_batch_norm(norm)
        and not norm.training
        and not torch.is_grad_enabled()
        and ops.runs_eagerly(features, norm.weight, norm.bias)
        and features.device.type == 'cpu'
        and features.dim() == 4
        and norm.running_mean is not None
        and features.dtype == norm.running_mean.dtype
        and can_bypass(conv, norm)
    ):
        return norm(features)
    given = (norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.0, norm.eps)
    unused = features.new_empty(0)  # for the batch's statistics
    torch.native_batch_norm(features, *given, out=(features, unused, unused))
    return features


def run(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Call a convolution and what follows it, of which the first may be a norm."""
    x = conv_norm(x, layers[0], layers[1])
    for layer in layers[2:]:
        x = layer(x)
    return x


def make_branches(x: Tensor, layers: Sequence[nn.Module], *, radix: int = 1) -> ops.Branches:
    """R branches side by side, [B, in_channels, H, W] -> [B, R * C, H', W'].

    Where a gradient is recorded on a CPU, batch norm and ReLU run as one function that autograd saves less for. On a
    CUDA device, bias and activation of a folded convolution are left to the kernels of fuse and select.

    Args:
        x: Input of the convolution.
        layers: The convolution, and what follows it.
        radix: R.
    """
    if not can_bypass(*layers):
        return ops.Branches([run(x, layers)], radix, observed=True)
    conv, *after = layers
    after = [layer for layer in after if type(layer) is not nn.Identity]
    if (
        type(conv) is FoldedConv
        and not after
        and conv.bias is not None
        and type(conv.act) is nn.Identity
        and not torch.is_grad_enabled()
        and ops.runs_kernels([x], radix=radix)
    ):
        packed = conv.convolve_only(x).chunk(radix, dim=1)
        return ops.Branches(packed, epilogue=ops.Epilogue(conv.bias.chunk(radix), conv.activation))
    if torch.is_grad_enabled() and len(after) == 2 and is_plain_batch_norm(after[0]) and type(after[1]) is nn.ReLU:
        source = conv(x)
        if _can_recompute(source, after[0], radix):
            features, state = ops.batch_norm_relu(source, after[0])
            return ops.Branches([features], radix, states=[state])
        return ops.Branches([after[1](after[0](source))], radix)
    is_conv = type(conv) is nn.Conv2d or (type(conv) is FoldedConv and type(conv.act) in _KEEP_NOTHING)
    private = is_conv and all(type(layer) in _KEEP_NOTHING for layer in after)
    return ops.Branches([run(x, layers)], radix, private=private)


def _can_recompute(source: Tensor, norm: nn.BatchNorm2d, radix: int) -> bool:
    """Whether `ops.batch_norm_relu` may compute the norm and ReLU of a convolution's output.

    Not on a CUDA device, where time is scarcer than memory, nor with one value per channel, which the norm refuses.
    """
    is_eager = ops.runs_eagerly(source, norm.weight, norm.bias)
    return (
        is_eager and source.dim() == 4 and source.numel() > source.shape[1] and not ops.runs_kernels([source] * radix)
    )
