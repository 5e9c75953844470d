"""timm_sk: selective-kernel networks for timm. Importing this package registers its models."""

from . import models, ops
from .hub import hub_entrypoints
from .layers import SelectiveKernel

__version__ = '0.1.0'

__all__ = ['SelectiveKernel', '__version__', 'hub_entrypoints', 'models', 'ops']
