"""Fine-tuning: one readable loop on timm's parts and torchrun, which ends in a folder that is ready for a hub."""

from .config import Config, read_settings

__all__ = ['Config', 'read_settings']
