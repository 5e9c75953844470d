"""Fine-tuning: one readable loop on timm's parts and torchrun, which ends in a folder that the Hub can load."""

from .config import Config, read_settings
from .features import extract
from .loop import Stopped
from .run import Finished, finetune

__all__ = ['Config', 'Finished', 'Stopped', 'extract', 'finetune', 'read_settings']
