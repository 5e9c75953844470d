"""Is this file the published one, and are these tensors the model's?"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Size, Tensor

from ..errors import CorruptCheckpointError, MismatchedCheckpointError

_CHUNK_BYTES = 1 << 20
_MOST_NAMED = 5


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(path: Path, sha256: str) -> None:
    """Check that a file is there and holds what was published.

    Args:
        path: The file.
        sha256: The published hex digest.

    Raises:
        CorruptCheckpointError: If it is missing or its sha256 is another.
    """
    if not path.is_file():
        raise CorruptCheckpointError(f'The checkpoint file {path} is missing: install timm_sk again.')
    found = sha256_of(path)
    if found != sha256:
        raise CorruptCheckpointError(
            f'The checkpoint file {path} is damaged: its sha256 is {found}, the published one {sha256}. '
            'Install timm_sk again.'
        )


def check_state_dict(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, Size],
    *,
    dropped: Collection[str] = (),
    adapted: Collection[str] = (),
) -> None:
    """Check a state dict's keys and shapes before it is loaded.

    `num_batches_tracked` may be missing, as it is from checkpoints older than torch 0.4.1 and from other frameworks.

    Args:
        state_dict: What the checkpoint holds.
        expected: Shape by key of the model.
        dropped: Keys that are not loaded, so may be missing on either side.
        adapted: Keys of convolutions that are adapted afterwards to another number of input channels, dimension 1.

    Raises:
        MismatchedCheckpointError: If other keys are missing, unexpected or of another shape; names them.
    """
    strangers = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if strangers:
        raise MismatchedCheckpointError(f'The checkpoint is no state dict. Not tensors: {_enumerate(strangers)}.')
    found = {key: tensor.shape for key, tensor in state_dict.items() if key not in dropped}
    wanted = {key: shape for key, shape in expected.items() if key not in dropped}
    missing = [key for key in wanted if key not in found and not key.endswith('.num_batches_tracked')]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [
        f'{key} ({list(found[key])} instead of {list(shape)})'
        for key, shape in wanted.items()
        if key in found and found[key] != shape and not (key in adapted and _differ_in_inputs_only(found[key], shape))
    ]
    complaints = [
        f'{complaint}: {_enumerate(keys)}'
        for complaint, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', reshaped))
        if keys
    ]
    if complaints:
        raise MismatchedCheckpointError(
            f'The checkpoint is not of this model. Keys {"; ".join(complaints)}. '
            'Create the architecture that the checkpoint was made for, with the same arguments.'
        )


def _differ_in_inputs_only(shape: Size, other: Size) -> bool:
    return len(shape) == len(other) == 4 and (shape[0], *shape[2:]) == (other[0], *other[2:])


def _enumerate(keys: list[str]) -> str:
    rest = len(keys) - _MOST_NAMED
    return ', '.join(keys[:_MOST_NAMED]) + (f' and {rest} more' if rest > 0 else '')
