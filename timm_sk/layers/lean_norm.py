"""Branches that are norm and ReLU of a convolution's output, made so that autograd keeps that output alone.

On a CUDA device, where time is in short supply rather than memory, autograd keeps the branches too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.lean import Branches, Recipe, normed

_GLOBAL_HOOKS = tuple(
    getattr(torch.nn.modules.module, f'_global_{kind}_hooks')
    for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')
)


def can_be_lean(x: Tensor, paths: Iterable[nn.Module], norms: Iterable[Any], acts: Iterable[Any]) -> bool:
    """Whether a unit's input is about to be recorded by autograd, and nobody can tell that its modules do not run.

    Norms and activations run as functions then: neither another class, as SyncBatchNorm or a wrapper, nor a hook may be
    passed over.

    Args:
        x: The input.
        paths: Modules that hold the norms and activations.
        norms: Norms.
        acts: Activations.
    """
    return (
        torch.is_grad_enabled()
        and ops.runs_eagerly(x)
        and all(type(norm) is nn.BatchNorm2d and _has_statistics(norm) for norm in norms)
        and all(type(act) is nn.ReLU for act in acts)
        and all(map(unobserved, paths))
    )


def unobserved(module: nn.Module) -> bool:
    """Whether no hook sees what goes into a module or its parts, or comes out of them."""
    return not any(_GLOBAL_HOOKS) and _has_no_hooks(module)


def _has_no_hooks(module: nn.Module) -> bool:
    # asked in each forward pass: half of the time that module.modules() takes
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return all(part is None or _has_no_hooks(part) for part in module._modules.values())


def lean_branches(sources: Sequence[Tensor], norms: Sequence[Any], *, radix: int = 1) -> Branches:
    """Norm and activate the outputs of a unit's convolutions, after `can_be_lean`.

    Args:
        sources: Tensors [B, R * C, H, W].
        norms: The batch norm of each; its running statistics move in train mode.
        radix: R, the branches that lie side by side in the channels of a source.
    """
    has_statistics = all(source.numel() > source.shape[1] for source in sources)  # torch's norm alone speaks of others
    if not has_statistics or ops.runs_kernels([*sources] * radix):
        # the kernels' backward pass reads the branches, which torch's own norm and ReLU then need not make again
        return Branches(
            [F.relu(norm(source), inplace=True) for source, norm in zip(sources, norms, strict=True)], radix
        )
    wholes: list[Tensor] = []
    recipes: list[Recipe] = []
    for source, norm in zip(sources, norms, strict=True):
        whole, recipe = _normed(source, norm)
        wholes.append(whole)
        recipes.append(recipe)
    return Branches(wholes, radix, recipes)


def _has_statistics(norm: nn.BatchNorm2d) -> bool:
    return norm.running_mean is not None and norm.momentum is not None


def _normed(source: Tensor, norm: Any) -> tuple[Tensor, Recipe]:
    if norm.training:
        norm.num_batches_tracked.add_(1)
    return normed(
        source,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )
