"""Check that a file is the published one, and that a state dict fits a model."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Size, Tensor, nn

from ..checkpoints import Source
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, UnreadableCheckpointError
from .readers.stream import FormatError, quote, shorten
from .readers.zips import unzip_single

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file; a FileNotFoundError for what is not a file, and may have no end."""
    if not path.is_file():
        raise FileNotFoundError(f'No such file: {path}.')
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with path.open('rb', buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def git_blob_sha1_of(path: Path) -> str:
    """Hex digest by which git identifies a file."""
    content = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def check_against_table(path: Path, source: Source) -> str:
    """Check a file's size and hashes, as far as the table has them; returns its sha256.

    Raises:
        CorruptCheckpointError: If its size or a hash differs; names both.
        UnreadableCheckpointError: If the hash is of a zip's content, and the file is no such zip.
    """
    size, sha256 = path.stat().st_size, sha256_of(path)
    if source.size not in (None, size):
        raise CorruptCheckpointError(f'{path} has {size} bytes, the published file {source.size}.')
    if not sha256.startswith(published := source.sha256 or source.sha256_prefix or ''):
        raise CorruptCheckpointError(f'{path} is damaged: its sha256 is {sha256}, the published one {published}.')
    if source.content_sha1:
        try:
            with path.open('rb') as file:
                content = hashlib.sha1(unzip_single(file).read()).hexdigest()
        except FormatError as error:
            raise UnreadableCheckpointError(f'{path} is not a zip of one file: {error}.') from error
        if not content.startswith(source.content_sha1):
            raise CorruptCheckpointError(
                f'{path} is damaged: the sha1 of the file in it is {content}, the published one {source.content_sha1}.'
            )
    return sha256


def check_state_dict(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, Size],
    *,
    dropped: Collection[str] = (),
    adapted: Collection[str] = (),
) -> None:
    """Check a state dict's keys and shapes before it is loaded.

    `num_batches_tracked` may be missing: checkpoints older than torch 0.4.1 and those of other frameworks lack it.

    Args:
        state_dict: State dict of the checkpoint.
        expected: Shapes by key of the model.
        dropped: Keys that are not loaded, and may be missing on either side.
        adapted: Keys of convolutions whose number of input channels (dimension 1) is adapted later.

    Raises:
        MismatchedCheckpointError: If keys are missing, unexpected or of another shape; names them.
    """
    others = [_shown(str(key)) for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if others:
        raise MismatchedCheckpointError(f'The checkpoint is not a state dict. Not tensors: {shorten(others)}.')
    found = {key: tensor.shape for key, tensor in state_dict.items() if key not in dropped}
    wanted = {key: shape for key, shape in expected.items() if key not in dropped}
    missing = [_shown(key) for key in wanted if key not in found and not key.endswith('.num_batches_tracked')]
    unexpected = [_shown(key) for key in found if key not in wanted]
    reshaped = [
        f'{_shown(key)} ({list(found[key])} instead of {list(shape)})'
        for key, shape in wanted.items()
        if key in found and found[key] != shape and not (key in adapted and _differ_in_inputs_only(found[key], shape))
    ]
    complaints = [
        f'{complaint}: {shorten(keys)}'
        for complaint, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', reshaped))
        if keys
    ]
    if complaints:
        raise MismatchedCheckpointError(
            f'The checkpoint is not of this model. Keys {"; ".join(complaints)}. '
            'Choose the architecture and the number of classes that the checkpoint was made for.'
        )


def load_checked(model: nn.Module, state_dict: Mapping[str, Tensor], *, dropped: Collection[str] = ()) -> None:
    """Check a state dict as `check_state_dict` does, and load it."""
    check_state_dict(state_dict, {key: tensor.shape for key, tensor in model.state_dict().items()}, dropped=dropped)
    kept = {key: tensor for key, tensor in state_dict.items() if key not in dropped}
    model.load_state_dict(kept, strict=False)  # num_batches_tracked may be missing


def _differ_in_inputs_only(shape: Size, other: Size) -> bool:
    return len(shape) == len(other) == 4 and (shape[0], *shape[2:]) == (other[0], *other[2:])


def _shown(key: str) -> str:
    """A name from a file, for a message: unchanged if it could be a key of a model, else escaped and shortened."""
    return key if re.fullmatch(r'[\w.:/-]{1,100}', key, re.ASCII) else quote(key)
