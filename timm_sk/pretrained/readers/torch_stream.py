"""PyTorch's format before 1.6: five pickles in a row, then the storages, each a length (u64) and its numbers."""

from typing import Any, BinaryIO

import torch

from .pickle_contents import Contents
from .pickle_vm import follow
from .stream import Refusal, Stream, quote

MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first pickle: the number 0x1950a86a20f9469cfc6c
_PROTOCOL = 1001


def read_torch_stream(file: BinaryIO) -> Any:
    """Load what `torch.save` wrote, after checking that its numbers agree.

    Raises:
        Refusal: If it holds more than tensors and containers, or its lengths lie.
    """
    contents = Contents()
    start = file.tell()
    stream = Stream(file)
    stream.take(len(MAGIC), 'the magic number')
    if follow(stream, contents) != _PROTOCOL:
        raise Refusal(f'it is not of protocol {_PROTOCOL}, the only one of this format')
    follow(stream, contents)  # facts on the machine that wrote it
    follow(stream, contents)
    keys = follow(stream, contents)
    strings = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not strings or sorted(keys) != sorted(contents.storages):
        raise Refusal('its list of storages is not that of the storages its tensors use')
    for key in keys:
        storage, what = contents.storages[key], f'storage {quote(key)}'
        if stream.number('<Q', f'the length of {what}') != storage.length:
            raise Refusal(f'{what} is not of the length that its pickle says, {storage.length}')
        stream.skip(storage.size, what)
    if stream.left:
        raise Refusal(f'{stream.left} bytes follow its last storage')
    file.seek(start)
    return load(file, contents, stream.size)


def load(file: BinaryIO, contents: Contents, size: int) -> Any:
    """`torch.load` of a file that was found to be sound.

    Args:
        file: Positioned where the format begins.
        contents: What its pickle describes.
        size: Bytes of the file.

    Raises:
        Refusal: If its tensors share storages so often that copies would outgrow the file, or torch cannot load it.
    """
    if contents.tensor_bytes > 4 * size:
        raise Refusal(f'its tensors would take {contents.tensor_bytes} bytes, more than four times its {size}')
    try:
        return torch.load(file, map_location='cpu', weights_only=True, mmap=False)
    except Exception as error:  # torch raises whatever its parts raise
        raise Refusal(f'torch cannot load it ({type(error).__name__}: {str(error).splitlines()[0]:.100})') from error
