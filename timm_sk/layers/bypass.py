"""The guard of all shortcuts: whether modules may be computed without calling them."""

import sys
from typing import Any, TypeGuard

import torch
from torch import nn

_HOOKS = tuple(f'_{kind}_hooks' for kind in ('forward', 'forward_pre', 'backward', 'backward_pre'))
_RUNNING = ('forward', 'split', 'logits', 'residual')  # methods that call submodules
_KNOWN = ('torch', 'torchvision', 'timm', 'timm_sk')
# What nn.Module calls the functions that it has under these names; a container has no other forward.
_OF_MODULE = {'__call__': 'Module._wrapped_call_impl', 'forward': '_forward_unimplemented'}
_GLOBAL_HOOKS = tuple(vars(nn.modules.module)[f'_global{kind}'] for kind in _HOOKS)


def can_bypass(*modules: nn.Module, parts: bool = True) -> bool:
    """Whether it makes no difference if these modules are not called.

    They have no hooks, none is compiled by itself, and neither `forward` nor `__call__` is replaced on an instance or
    patched on a class. The caller must check the exact class, which tells what a module computes; a parametrized module
    has another class. Functions patched in `torch` itself and modes of `torch.overrides` are not checked.

    Args:
        *modules: The modules.
        parts: Check their submodules too.
    """
    if any(_GLOBAL_HOOKS):
        return False
    called = ('__call__', '_call_impl')
    if not torch.compiler.is_compiling() and not all(is_original(nn.Module, method) for method in called):
        return False
    return all(_is_untouched(module, parts) for module in modules)


def is_plain_batch_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is a batch norm that uses and updates running statistics with a momentum."""
    return (
        type(module) is nn.BatchNorm2d
        and module.track_running_stats
        and module.running_mean is not None
        and module.running_var is not None
        and module.num_batches_tracked is not None
        and module.momentum is not None
    )


def is_original(owner: Any, method: str) -> bool:
    """Whether a method of a class or an instance is the one that its class was defined with."""
    kind = owner if isinstance(owner, type) else type(owner)
    if kind is not owner and method in owner.__dict__:
        return False
    definer = _definer(kind, method)
    home = sys.modules.get(definer.__module__)
    function = definer.__dict__[method]
    if home is None or getattr(function, '__globals__', None) is not vars(home):
        return False
    written = (
        _OF_MODULE[method] if definer is nn.Module and method in _OF_MODULE else f'{definer.__qualname__}.{method}'
    )
    return function.__qualname__ == written


def runs_as_known(module: nn.Module) -> bool:
    """Whether a module calls its submodules as torch, torchvision, timm or this package defined it."""
    kind = type(module)
    methods = [method for method in _RUNNING if hasattr(kind, method)]
    known = all(_definer(kind, method).__module__.partition('.')[0] in _KNOWN for method in methods)
    return known and all(is_original(module, method) for method in methods)


def refuse_scripting(module: nn.Module) -> nn.Module:
    """Raise an error; `torch.jit.script` calls `__prepare_scriptable__` of every module of a model."""
    raise NotImplementedError(
        f'torch.jit.script does not support {type(module).__name__}: use torch.export.export or torch.jit.trace.'
    )


def _definer(kind: type, method: str) -> type:
    return next(base for base in kind.__mro__ if method in base.__dict__)


def _is_untouched(module: nn.Module, parts: bool) -> bool:
    # asked in each forward pass, so without module.modules(), which takes twice as long
    attributes = module.__dict__
    if 'forward' in attributes or any(attributes[name] for name in _HOOKS):
        return False
    if not torch.compiler.is_compiling():  # Dynamo cannot trace the rest
        if type(module).__call__ is not nn.Module.__call__ or module._compiled_call_impl is not None:
            return False
        if not is_original(type(module), 'forward'):
            return False
    return not parts or all(part is None or _is_untouched(part, parts) for part in attributes['_modules'].values())
