"""Fine-tuning: one readable loop on timm's parts and torchrun, which ends in a folder that the Hub can load.

The settings are read without importing torch, which the help of `timm-sk finetune` needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import Config, read_settings

if TYPE_CHECKING:
    from .features import extract
    from .loop import Stopped
    from .run import Finished, finetune

__all__ = ['Config', 'Finished', 'Stopped', 'extract', 'finetune', 'read_settings']
_MODULES = dict(extract='.features', Stopped='.loop', Finished='.run', finetune='.run')


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_MODULES[name], __name__), name)
