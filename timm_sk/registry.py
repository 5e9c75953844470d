"""Registration in timm, also of names that timm has already.

`import timm_sk` replaces timm's entrypoint of the same name, because ours has the same parameters and outputs. Every
tag that timm knows for the name stays, with its full repository id (timm completes an id only from the literal
'timm/'), and timm's default tag stays the default. The attribute `timm.models.<name>` stays timm's.
"""

import sys
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path

import timm.models
from torch import nn

from .errors import UnknownModelError, nearest

Entrypoint = Callable[..., nn.Module]

_ENTRYPOINTS: dict[str, Entrypoint] = {}


def register(entrypoint: Entrypoint) -> Entrypoint:
    """Register a model function under its name, with the `default_cfgs` of its module, and return it unchanged."""
    name = entrypoint.__name__
    default_cfg = sys.modules[entrypoint.__module__].default_cfgs[name]
    upstream_cfgs = list(timm.models.get_arch_pretrained_cfgs(name).values())
    for cfg in upstream_cfgs:
        default_cfg.cfgs.setdefault(cfg.tag, cfg)
    default_cfg.tags = deque(dict.fromkeys([*(cfg.tag for cfg in upstream_cfgs), *default_cfg.tags]))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=f'Overwriting {name} in registry')
        timm.models.register_model(entrypoint)
    _ENTRYPOINTS[name] = entrypoint
    return entrypoint


def architectures() -> dict[str, Entrypoint]:
    """The entry points of this package's architectures by name, in the order of their files."""
    return dict(_ENTRYPOINTS)


def tags_with_weights(arch: str) -> list[str]:
    """The tags of an architecture that have weights, the default first."""
    return [cfg.tag or '' for cfg in timm.models.get_arch_pretrained_cfgs(arch).values() if cfg.has_weights]


def pretrained_cfg(name: str) -> timm.models.PretrainedCfg:
    """Cfg of a checkpoint in timm's registry.

    Args:
        name: Architecture, for its default checkpoint, or `arch.tag`.

    Raises:
        UnknownModelError: If timm's registry has no such name.
    """
    name = require_model(name)
    cfg = timm.models.get_pretrained_cfg(name) if ':' not in name else None
    if cfg is None:
        raise UnknownModelError(f'"{name}" has no preprocessing in the registry: name an architecture or arch.tag.')
    return cfg


def require_model(name: str) -> str:
    """The name by which `timm.create_model` builds a model: checked, and `local-dir:` before that of a folder.

    Names with a source, such as `hf-hub:` or `local-dir:`, are left to timm. A folder named like a model is not used.

    Raises:
        UnknownModelError: For an unknown name; the message suggests similar names.
        ValueError: If the name looks like a path or a repository's id without its source.
    """
    arch, tag = timm.models.split_model_name_tag(name)
    is_architecture = timm.models.is_model(arch)
    tagged = timm.models.list_models(f'{arch}.*', include_tags=True) if is_architecture else []
    if is_architecture and (not tag or name in tagged):
        return name
    if name and Path(name).is_dir():
        return f'local-dir:{name}'
    if timm.models.parse_model_name(name)[0]:
        return name
    if is_architecture:
        raise UnknownModelError(f'{arch} has no checkpoint "{tag}". It has: {", ".join(tagged) or "none"}.')
    known = [*timm.models.list_models(), *timm.models.list_models(include_tags=True)]
    raise UnknownModelError(f'There is no model "{name}".{nearest(name, known)} `timm-sk list` shows all.')
