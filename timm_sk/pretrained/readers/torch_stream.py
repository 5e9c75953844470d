"""PyTorch's format before 1.6: five pickles in a row, then the storages, each a length (u64) and its numbers."""

from typing import Any, BinaryIO

from .stream import FormatError, Stream, quote
from .torch_pickle import TensorUnpickler
from .torch_tensors import TensorTable

MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first pickle: the number 0x1950a86a20f9469cfc6c
_PROTOCOL = 1001


def read_torch_stream(file: BinaryIO) -> Any:
    """Read what `torch.save` wrote."""
    table, stream = TensorTable(), Stream(file)
    stream.take(len(MAGIC), 'the magic number')
    if TensorUnpickler(stream, table).load() != _PROTOCOL:
        raise FormatError(f'it does not have protocol {_PROTOCOL}, the only one of this format')
    TensorUnpickler(stream, table).load()  # about the machine that wrote the file
    loaded = TensorUnpickler(stream, table).load()
    keys = TensorUnpickler(stream, table).load()
    are_strings = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not are_strings or sorted(keys) != sorted(table.storages):
        raise FormatError('its list of storages differs from the storages that its tensors use')
    table.check_size(stream.size)
    for key in keys:
        storage, name = table.storages[key], f'storage {quote(key)}'
        length = stream.number('<Q', f'the length of {name}')
        if length != storage.length:
            raise FormatError(f'{name} has length {length}; its pickle says {storage.length}')
        table.fill(storage, stream.take(storage.size, name))
    if stream.left:
        raise FormatError(f'{stream.left} bytes follow its last storage')
    return loaded
