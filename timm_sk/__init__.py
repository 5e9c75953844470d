"""timm_sk: selective-kernel networks for timm. Importing this package registers its models."""

from . import models, ops
from .layers import SelectiveKernel

__version__ = '0.1.0'

__all__ = ['SelectiveKernel', '__version__', 'models', 'ops']
