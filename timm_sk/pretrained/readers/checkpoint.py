"""Read the state dict of a checkpoint of any known format."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ...errors import UnreadableCheckpointError
from .caffemodel import read_caffe
from .formats import detect
from .mindspore import read_mindspore
from .mxnet import read_mxnet
from .numpy_pickle import read_numpy_pickle
from .safetensors_file import read_safetensors
from .state_dict import unwrap
from .stream import FormatError
from .tensor_bundle import read_bundle
from .torch_archive import read_torch_archive
from .torch_stream import read_torch_stream
from .zips import unzip_single

_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    'torch': read_torch_archive,
    'torch-legacy': read_torch_stream,
    'numpy-pickle': read_numpy_pickle,
    'safetensors': read_safetensors,
    'caffe': read_caffe,
    'mindspore': read_mindspore,
    'mxnet': read_mxnet,
}


def read_checkpoint(
    path: str | os.PathLike[str], *, use_ema: bool = False, wanted: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint of any known format.

    Nothing in it is executed; memory is bounded by the file's size.

    Args:
        path: The file; its name is ignored, except that of TensorFlow's `.index`, beside which the shards are.
        use_ema: Take the averaged weights of timm's train.py, if the file has any.
        wanted: Selects the tensors of a TensorFlow checkpoint by name; the bytes of others are not read.

    Returns:
        Dense, contiguous tensors on the CPU in the file's order, with the file's types. Wrappers such as
        {'state_dict': …, 'optimizer': …} and a prefix `module.` of all keys are removed. A Caffe blob's key is
        '<layer>:<index>'.

    Raises:
        UnreadableCheckpointError: If the file is damaged, hostile or of another format; names the file and the reason.
        FileNotFoundError: If there is no such file.
    """
    with reader_errors(path):
        return unwrap(_read(path, wanted), use_ema=use_ema)


def read_training_checkpoint(
    path: str | os.PathLike[str], *, use_ema: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint as `read_checkpoint` does, and the options of timm's train.py, if it has them.

    Options that are neither texts, numbers, None nor lists of these are left out; whether others make sense is not
    checked.
    """
    with reader_errors(path):
        loaded = _read(path)
        options = loaded.get('args') if isinstance(loaded, Mapping) else None
        found = vars(options) if isinstance(options, Namespace) else {}
        return unwrap(loaded, use_ema=use_ema), {name: value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, str | int | float) for item in items)


def read_contents(path: str | os.PathLike[str]) -> Any:
    """Read everything that a file holds as safely as `read_checkpoint`, and raise what that raises.

    Returns:
        Of a PyTorch file: dense tensors, lists, tuples, dicts with strings and integers as keys, strings, numbers and
        `argparse.Namespace`s, in any combination. Of others: tensors by name.
    """
    with reader_errors(path):
        return _read(path)


@contextmanager
def reader_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert errors of the readers to those that `read_checkpoint` raises."""
    try:
        yield
    except FormatError as error:
        raise UnreadableCheckpointError(
            f'{path} cannot be read as a checkpoint: {error.reason}. {error.advice}'
        ) from error
    except MemoryError as error:
        raise UnreadableCheckpointError(
            f'{path} cannot be read as a checkpoint: its {os.stat(path).st_size} bytes do not fit in memory. '
            'Use a machine with more memory.'
        ) from error


def _read(path: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None) -> Any:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'No such file: {path}.')
    if not path.is_file():
        raise FormatError('it is not a regular file', 'Give the path of the file itself.')
    with path.open('rb') as file:
        found = detect(file)
        if found == 'tensorflow-index':
            return read_bundle(file, path, wanted)
        if found != 'zip':
            return _READERS[found](file)
        unzipped = unzip_single(file)
    found = detect(unzipped)
    if found not in _READERS:
        raise FormatError(f'it is a {found} in a zip', 'Unpack it first.')
    return _READERS[found](unzipped)
