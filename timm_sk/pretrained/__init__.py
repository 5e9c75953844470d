"""From a row of the table of checkpoints to a verified local file. Knows no model."""

from . import convert
from .hf_hub import hub_file, require_hub
from .import_checkpoint import store_file, to_our_layout
from .readers import read_checkpoint, read_contents, read_training_checkpoint
from .resolve import fetch
from .safetensors_io import save_safetensors
from .store import CONFIG_NAME, ORIGIN_NAME, WEIGHTS_NAME, Origin, Store, bundled_folder, store_root
from .verify import check_state_dict, load_checked, sha256_of

__all__ = [
    'CONFIG_NAME',
    'ORIGIN_NAME',
    'WEIGHTS_NAME',
    'Origin',
    'Store',
    'bundled_folder',
    'check_state_dict',
    'convert',
    'fetch',
    'hub_file',
    'load_checked',
    'read_checkpoint',
    'read_contents',
    'read_training_checkpoint',
    'require_hub',
    'save_safetensors',
    'sha256_of',
    'store_file',
    'store_root',
    'to_our_layout',
]
