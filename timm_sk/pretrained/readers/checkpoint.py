"""The public functions: a file's format, and its tensors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ...errors import UnreadableCheckpointError
from .caffe import read_caffe
from .formats import detect
from .mindspore import read_mindspore
from .mxnet import read_mxnet
from .safetensors_file import read_safetensors
from .state_dict import unwrap
from .stream import Refusal
from .torch_archive import read_torch_archive
from .torch_stream import read_torch_stream
from .zips import unzip_single

_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    'torch': read_torch_archive,
    'torch-legacy': read_torch_stream,
    'safetensors': read_safetensors,
    'caffe': read_caffe,
    'mindspore': read_mindspore,
    'mxnet': read_mxnet,
}


def detect_format(path: str | os.PathLike[str]) -> str:
    """Tell the format of a checkpoint's file from its content; its name plays no part.

    Args:
        path: The file.

    Returns:
        'torch' (a zip archive), 'torch-legacy' (a pickle stream), 'safetensors', 'caffe', 'mindspore', 'mxnet', or
        'zip' for an archive of one of these.

    Raises:
        UnreadableCheckpointError: If it is of none of these; says what it is where that can be told.
        FileNotFoundError: If there is no such file.
    """
    with _opened(path) as file:
        return detect(file)


def read_checkpoint(path: str | os.PathLike[str], *, use_ema: bool = False) -> dict[str, Tensor]:
    """Read a checkpoint of any known format. Nothing in it is executed, and memory stays within its size's order.

    Args:
        path: The file.
        use_ema: Whether to take the averaged weights of timm's train.py, if the file has any.

    Returns:
        Dense, contiguous tensors on the CPU in the file's order, of the types that the file has. Wrappers such as
        {'state_dict': …, 'optimizer': …} and a prefix `module.` on all keys are taken off. A Caffe blob's key is
        '<layer>:<index>'.

    Raises:
        UnreadableCheckpointError: If the file is damaged, hostile or of another format; names file and reason.
        FileNotFoundError: If there is no such file.
    """
    with _opened(path) as file:
        found = detect(file)
        if found != 'zip':
            return unwrap(_READERS[found](file), use_ema=use_ema)
        inner = unzip_single(file)
        found = detect(inner)
        if found == 'zip':
            raise Refusal('it is a zip in a zip', 'Unpack it first.')
        return unwrap(_READERS[found](inner), use_ema=use_ema)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file, and an error with its name for whatever is refused."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise Refusal('it is no regular file', 'Give the path of the file itself.')
        with path.open('rb') as file:
            yield file
    except Refusal as refusal:
        raise UnreadableCheckpointError(
            f'{path} cannot be read as a checkpoint: {refusal.reason}. {refusal.advice}'
        ) from refusal
    except MemoryError as error:
        raise UnreadableCheckpointError(
            f'{path} cannot be read as a checkpoint: its {path.stat().st_size} bytes do not fit in memory. '
            'Use a machine with more.'
        ) from error
