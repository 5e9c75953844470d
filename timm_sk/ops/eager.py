"""Fuse and select in fewer passes over memory than the reference, for tensors that are computed at once.

A pass over a feature map costs more than arithmetic: on 2 cores, [8, 128, 56, 56] in float32, the selection of the
reference takes 10.4 ms (three new tensors), `lerp` 3.3 ms (one), and 1.1 ms where it may write into a branch.

The backward passes are written out:

- `fuse` returns its gradient as an expanded view, which autograd adds to the other gradient of the branches in place;
- `select` needs the branches only for the gradient of its weights. A branch that is `relu(batch_norm(source))` is
  recomputed from the source, which the backward pass of the norm needs anyway, so that the branch can be freed.

They consist of differentiable operations that batch, so second derivatives and `vmap` work. Memory is written in place
only where neither is asked for.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .branches import BatchNormReLUState, Branches
from .dispatch import runs_eagerly
from .reference import gate_weights


def batch_norm_relu(source: Tensor, norm: Any) -> tuple[Tensor, BatchNormReLUState]:
    """Compute `relu(norm(source))` and the state to recompute it, for which autograd saves only the source.

    Args:
        source: [B, C, H, W].
        norm: An `nn.BatchNorm2d` with running statistics, which are updated in train mode.
    """
    if norm.training:
        norm.num_batches_tracked.add_(1)
    features, mean, variance, inverse_std = _BatchNormReLU.apply(
        source,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.training,
        norm.momentum,
        norm.eps,
    )
    statistics = mean, variance, inverse_std
    return features, BatchNormReLUState(source, norm.weight, norm.bias, *statistics, norm.eps, norm.training)


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normalised, mean, inverse_std = torch.native_batch_norm(
            source, weight, bias, running_mean, running_var, training, momentum, eps
        )
        if training:
            variance = inverse_std.pow(-2) - eps
        else:
            mean, variance = running_mean.clone(), running_var.clone()
        ctx.save_for_backward(source, weight, bias, mean, variance, inverse_std)
        ctx.constants = eps, training
        ctx.mark_non_differentiable(mean, variance, inverse_std)
        return normalised.relu_(), mean, variance, inverse_std

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        state = BatchNormReLUState(*ctx.saved_tensors, *ctx.constants)
        with torch.no_grad():
            normalised = state.normalize()
        if not torch.is_grad_enabled() and runs_eagerly(grad):
            grad = torch.ops.aten.threshold_backward.grad_input(grad, normalised, 0, grad_input=normalised)
        else:
            grad = torch.ops.aten.threshold_backward(grad, normalised, 0)
        needed = [bool(need) for need in ctx.needs_input_grad[:3]]
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad,
            state.source,
            state.weight,
            state.mean,
            state.variance,
            state.mean,
            state.inverse_std,
            state.training,
            state.eps,
            needed,
        )
        return *(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), *[None] * 5


def _is_nhwc(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def spatial_mean(x: Tensor, *, nhwc: bool) -> Tensor:
    """Average over space, [B, C, H, W] -> [B, C].

    Args:
        x: The features.
        nhwc: Whether they are in channels_last format, of which a transform's tensors cannot be asked.
    """
    if nhwc and x.device.type == 'cpu' and x.dtype in (torch.bfloat16, torch.float16):
        return F.avg_pool2d(x, x.shape[2:])[:, :, 0, 0]  # sums in float32 as well, 0.31 ms against 1.3 ms
    return x.mean(dim=(2, 3))


def fuse(branches: Branches) -> Tensor:
    """`reference.fuse` without the sum of the branches."""
    packed, radix = (branches.tensors, branches.radix) if branches.epilogue is None else (branches.unpack(), 1)
    if branches.observed or not torch.is_grad_enabled():
        return _pool(packed, radix)
    return _Fuse.apply(radix, *packed)


def _pool(packed: Sequence[Tensor], radix: int) -> Tensor:
    means = [spatial_mean(tensor, nhwc=_is_nhwc(tensor)) for tensor in packed]
    return reduce(torch.add, [part for mean in means for part in mean.chunk(radix, dim=1)])


class _Fuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, radix: int, *packed: Tensor) -> Tensor:
        ctx.radix, ctx.count, ctx.shape = radix, len(packed), packed[0].shape
        return _pool(packed, radix)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        height, width = ctx.shape[2:]
        spread = (grad / (height * width)).repeat(1, ctx.radix)[:, :, None, None].expand(ctx.shape)
        return None, *[spread] * ctx.count


def select(branches: Branches, logits: Tensor, gate: str, *, in_place: bool = False) -> Tensor:
    """`reference.select` without its intermediate tensors."""
    if branches.observed or branches.epilogue is not None or not torch.is_grad_enabled():
        # a branch that is a part of a tensor would leave a result with gaps
        in_place = in_place and branches.private and branches.radix == 1 and not torch.is_grad_enabled()
        return _weigh(branches.unpack(), logits, gate, in_place=in_place)
    return _Select.apply(gate, branches.radix, branches.states, logits, *branches.tensors)


def _weigh(branches: Sequence[Tensor], logits: Tensor, gate: str, *, in_place: bool = False) -> Tensor:
    dtype = branches[0].dtype
    if len(branches) == 2 and gate == 'softmax':
        share = (logits[:, 0] - logits[:, 1]).sigmoid().to(dtype)[:, :, None, None]  # a softmax over two
        return branches[1].lerp_(branches[0], share) if in_place else branches[1].lerp(branches[0], share)
    weights = gate_weights(logits, gate).to(dtype)[:, :, :, None, None]  # [B, M, C, 1, 1]
    selected = branches[0].mul_(weights[:, 0]) if in_place else branches[0] * weights[:, 0]
    for m in range(1, len(branches)):
        selected.addcmul_(branches[m], weights[:, m])
    return selected


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: str, radix: int, states: Sequence[BatchNormReLUState], logits: Tensor, *packed: Tensor
    ) -> Tensor:
        ctx.gate, ctx.radix, ctx.constants = gate, radix, [state.constants for state in states]
        ctx.save_for_backward(logits, *([tensor for state in states for tensor in state.tensors] or packed))
        return _weigh(Branches(packed, radix).unpack(), logits, gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, *packed = ctx.saved_tensors
        if ctx.constants:
            count = len(packed) // len(ctx.constants)
            tensors = [packed[start : start + count] for start in range(0, len(packed), count)]
            # one after the other, each in memory for as long as it is needed
            states = (BatchNormReLUState(*t, *c) for t, c in zip(tensors, ctx.constants, strict=True))
            packed = (state.normalize().relu_() for state in states)
        gradients, logits_gradient = select_backward(grad, packed, ctx.radix, logits, ctx.gate)
        return None, None, None, logits_gradient, *gradients


def select_backward(
    grad: Tensor, packed: Iterable[Tensor], radix: int, logits: Tensor, gate: str
) -> tuple[list[Tensor], Tensor]:
    """The gradients of `reference.select`, as differentiable operations that batch.

    Args:
        grad: Gradient of the result [B, C, H, W].
        packed: Tensors [B, R * C, H, W] of R branches each.
        radix: R.
        logits: [B, M, C].
        gate: 'softmax' or 'sigmoid'.

    Returns:
        The gradient of each tensor, and that of the logits.
    """
    batch, channels, height, width = grad.shape
    weights = gate_weights(logits, gate)  # [B, M, C]
    may_write = not torch.is_grad_enabled() and runs_eagerly(grad)
    grad = grad[:, None]  # [B, 1, C, H, W]
    gradients, slopes = [], []
    for features, share in zip(packed, weights.to(grad.dtype).split(radix, dim=1), strict=True):  # share: [B, R, C]
        branches = features.reshape(batch, radix, channels, height, width)
        out = torch.empty_like(features).view_as(branches) if may_write else None  # for both products
        product = torch.mul(branches, grad, out=out).reshape(features.shape)
        means = spatial_mean(product, nhwc=_is_nhwc(features))
        slopes.append((means * (height * width)).reshape(batch, radix, channels))
        gradients.append(torch.mul(grad, share[:, :, :, None, None], out=out).reshape(features.shape))
    slope = torch.cat(slopes, dim=1).to(weights.dtype)  # [B, M, C], gradient of the weights
    if gate == 'sigmoid':
        logits_gradient = slope * weights * (1 - weights)
    else:
        logits_gradient = weights * (slope - (slope * weights).sum(dim=1, keepdim=True))
    return gradients, logits_gradient.to(logits.dtype)
