"""Which implementations support given tensors: the Triton kernels, eager shortcuts, or only the reference."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn

from . import kernels


def runs_eagerly(*tensors: Any) -> bool:
    """Whether operations on these tensors are computed at once, by torch's own kernels and torch's own backward pass.

    False for what `torch.compile`, `torch.export`, `torch.fx` and `torch.jit.trace` see, for tensors inside a
    transform or with a forward-mode tangent, for subclasses of tensors, and where a mode looks at every operation.
    None counts as eager, as the weight of a norm that has none.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    for x in tensors:  # called for each convolution, so without nested functions
        if x is None:
            continue
        if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.is_legacy_batchedtensor(x):
            return False
        if torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
            return False
    return True


def is_batched(x: Tensor) -> bool:
    """Whether a tensor is inside a transform of `torch.func`, or the older `vmap` of `is_grads_batched`."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(x)


@torch.compiler.assume_constant_result  # Dynamo of torch 2.11 takes torch's own function for a constant True
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def runs_kernels(branches: Sequence[Any], logits: Any = None, *, radix: int = 1) -> bool:
    """Whether `fuse` and `select` run as Triton kernels on branches with the dtype and device of these tensors.

    `kernels.takes` must support them, and they must run eagerly or be compiled by `torch.compile`, whose graphs have
    kernels if `kernels.IN_COMPILED_GRAPHS` is set. Exported programs run anywhere and have no kernels.
    """
    tensors = [*branches] if logits is None else [*branches, logits]
    if not all(type(tensor) is Tensor for tensor in tensors) or not kernels.takes([*branches] * radix, logits):
        return False
    if torch.compiler.is_compiling():
        elsewhere = _is_exporting() or torch._C._are_functorch_transforms_active()
        return kernels.IN_COMPILED_GRAPHS and not elsewhere
    return runs_eagerly(*tensors)
