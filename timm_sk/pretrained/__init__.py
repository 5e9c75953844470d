"""Whose checkpoint: from a row of the table to a verified local file. Knows no model."""

from . import convert
from .resolve import bundled_file, verified_file
from .store import bundled_folder, save_safetensors
from .verify import check_file, check_state_dict, sha256_of

__all__ = [
    'bundled_file',
    'bundled_folder',
    'check_file',
    'check_state_dict',
    'convert',
    'save_safetensors',
    'sha256_of',
    'verified_file',
]
