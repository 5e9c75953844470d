"""Convolution, norm and activation one after the other, in less memory where nobody can tell.

`conv_norm` and `run` call modules in their order, but for a norm where `can_bypass` allows a shortcut; `make_branches`
is for modules of which `can_bypass` was asked before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .bypass import can_bypass, is_plain_batch_norm
from .folded_conv import FoldedConv, FoldedNorm

# Modules that return new tensors or write into what they are given, and keep none.
_KEEP_NOTHING = {nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU}


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`; without gradients on a CPU, the norm may write into the convolution's output.

    A large new tensor costs its pages as well as its pass: glibc returns the memory of the former one to the system,
    which clears every page anew. On 2 cores, resnest50d in float32, batch 8 at 224x224, took 85,000 page faults in a
    forward pass that kept the convolutions' outputs, and 56,000 in one that writes into them, 8 to 10 % faster.
    """
    features = conv(x)
    if torch.is_grad_enabled() or not ops.runs_eagerly(features) or features.device.type != 'cpu':
        return norm(features)
    if type(conv) is not nn.Conv2d or not is_plain_batch_norm(norm) or norm.training or features.dim() != 4:
        return norm(features)
    mean: Any = norm.running_mean
    plain = mean.dtype == features.dtype and can_bypass(conv, norm)
    if not plain or any(map(ops.has_tangent, (norm.weight, norm.bias))):
        return norm(features)
    unused = features.new_empty(0)  # for the batch's statistics
    torch.native_batch_norm(
        features, norm.weight, norm.bias, mean, norm.running_var, False, 0.0, norm.eps, out=(features, unused, unused)
    )
    return features


def run(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """A convolution, and what follows it, of which the first may be a norm."""
    x = conv_norm(x, layers[0], layers[1])
    for layer in layers[2:]:
        x = layer(x)
    return x


def make_branches(x: Tensor, layers: Sequence[nn.Module], *, radix: int = 1) -> ops.Branches:
    """R branches side by side, [B, in_channels, H, W] -> [B, R * C, H', W'], computed as is best.

    Where a gradient is recorded, batch norm and ReLU may run as one function that autograd keeps less for. On a CUDA
    device, what a folded convolution does after its sums may be left to the kernels of fuse and select, so that no
    branch is ever in memory.

    Args:
        x: The convolution's input.
        layers: The convolution, and what follows it, in their order, which `can_bypass` allows not to call.
        radix: R.
    """
    conv, *after = layers
    after = [layer for layer in after if type(layer) not in (nn.Identity, FoldedNorm)]
    if type(conv) is FoldedConv and not after:
        if conv.bias is not None and type(conv.act) is nn.Identity and ops.can_defer(x, radix):
            raws = conv.convolve_alone(x).chunk(radix, dim=1)
            return ops.Branches(raws, epilogue=ops.Epilogue(conv.bias.chunk(radix), conv.activation))
        return ops.Branches([conv(x)], radix, private=type(conv.act) in {nn.Identity, *_KEEP_NOTHING})
    if torch.is_grad_enabled() and len(after) == 2 and is_plain_batch_norm(after[0]) and type(after[1]) is nn.ReLU:
        source = conv(x)
        if ops.can_recompute(source, after[0], radix):
            features, state = ops.batch_norm_relu(source, after[0])
            return ops.Branches([features], radix, states=[state])
        return ops.Branches([after[1](after[0](source))], radix)
    private = type(conv) is nn.Conv2d and _KEEP_NOTHING.issuperset(map(type, after))
    return ops.Branches([run(x, layers)], radix, private=private)
