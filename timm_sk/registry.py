"""Registration in timm, also of names that timm has already.

`import timm_sk` replaces timm's entrypoint of the same name, because ours has the same parameters and outputs. Every
tag that timm knows for the name stays, with its full repository id (timm completes an id only from the literal
'timm/'), and timm's default tag stays the default. The attribute `timm.models.<name>` stays timm's.
"""

import difflib
import sys
import warnings
from collections import deque
from collections.abc import Callable

import timm.models
from torch import nn

from .errors import UnknownModelError

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
    require_model(name)
    cfg = timm.models.get_pretrained_cfg(name) if ':' not in name else None
    if cfg is None:
        raise UnknownModelError(f'"{name}" has no preprocessing in the registry: name an architecture or arch.tag.')
    return cfg


def require_model(name: str) -> None:
    """Check that timm's registry has an architecture and, where one is given, its tag.

    Names with a source, such as `hf-hub:` or `local-dir:`, are left to timm.

    Raises:
        UnknownModelError: For an unknown name; the message suggests similar names.
        ValueError: If the name looks like a path or a repository's id without its source.
    """
    source, _ = timm.models.parse_model_name(name)
    if source:
        return
    arch, tag = timm.models.split_model_name_tag(name)
    if timm.models.is_model(arch):
        tagged = timm.models.list_models(f'{arch}.*', include_tags=True)
        if not tag or name in tagged:
            return
        raise UnknownModelError(f'{arch} has no checkpoint "{tag}". It has: {", ".join(tagged) or "none"}.')
    known = sorted({*timm.models.list_models(), *timm.models.list_models(include_tags=True)})
    nearest = difflib.get_close_matches(name, known, n=4) or list(_ENTRYPOINTS)[:4]
    raise UnknownModelError(f'There is no model "{name}". Nearest: {", ".join(nearest)}. `timm-sk list` shows all.')
