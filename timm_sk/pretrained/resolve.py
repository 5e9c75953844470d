"""From a row of the table to a verified local file."""

from pathlib import Path

from ..checkpoints import Checkpoint
from .store import bundled_folder
from .verify import check_file

WEIGHTS_NAME = 'model.safetensors'


def bundled_file(checkpoint: Checkpoint) -> Path | None:
    """Path of the weights that ship with the project, whether or not the file is there; None if none do."""
    return bundled_folder(checkpoint.name) / WEIGHTS_NAME if checkpoint.bundled else None


def verified_file(checkpoint: Checkpoint) -> Path | None:
    """Find and verify the local file of a checkpoint; None where timm's own loader fetches it from the hub.

    Raises:
        CorruptCheckpointError: If the file ought to be on this machine but is missing or damaged.
    """
    if checkpoint.bundled is None:
        return None
    path = bundled_folder(checkpoint.name) / WEIGHTS_NAME
    check_file(path, checkpoint.bundled.sha256 or 'unknown')
    return path
