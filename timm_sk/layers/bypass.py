"""The one guard of all shortcuts: whether a group of modules may be computed without calling them."""

import sys
from typing import TypeGuard

import torch
from torch import nn

_HOOKS = tuple(f'_{kind}_hooks' for kind in ('forward', 'forward_pre', 'backward', 'backward_pre'))
_GLOBAL_HOOKS = tuple(vars(nn.modules.module)[f'_global{kind}'] for kind in _HOOKS)


def can_bypass(*modules: nn.Module, parts: bool = True) -> bool:
    """Whether nobody could tell that these modules, and with `parts` those in them, are not called.

    That is: no hook of any kind looks at them, and `forward` is neither replaced on an instance nor patched on a class.
    What a module computes is for the caller to know, by its exact class: a parametrized module has another one.
    """
    if any(_GLOBAL_HOOKS) or not (torch.compiler.is_compiling() or _is_original(nn.Module, '__call__')):
        return False
    return all(_is_ordinary(module, parts) for module in modules)


def is_plain_batch_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is a batch norm that reads and moves running statistics by its momentum, as it is built."""
    return (
        type(module) is nn.BatchNorm2d
        and module.track_running_stats
        and module.running_mean is not None
        and module.running_var is not None
        and module.num_batches_tracked is not None
        and module.momentum is not None
    )


def _is_ordinary(module: nn.Module, parts: bool) -> bool:
    # asked in each forward pass, so without module.modules(), which takes twice as long
    attributes = module.__dict__
    if 'forward' in attributes or any(attributes[name] for name in _HOOKS):
        return False
    if not (torch.compiler.is_compiling() or _is_original(type(module), 'forward')):  # Dynamo cannot trace the latter
        return False
    return not parts or all(part is None or _is_ordinary(part, parts) for part in attributes['_modules'].values())


def _is_original(kind: type, method: str) -> bool:
    """Whether a class's method was written where the class that defines it was, rather than put there later."""
    owner = next(base for base in kind.__mro__ if method in base.__dict__)
    return getattr(owner.__dict__[method], '__globals__', None) is vars(sys.modules[owner.__module__])
