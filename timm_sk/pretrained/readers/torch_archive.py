"""PyTorch's format since 1.6: a zip of a pickle, `<name>/data.pkl`, and of its storages, `<name>/data/<key>`."""

import io
import zipfile
from typing import Any, BinaryIO

import numpy as np

from .stream import FormatError, Stream, quote
from .torch_pickle import TensorUnpickler
from .torch_tensors import NOT_EXECUTED, TensorTable
from .zips import open_zip, read_entry

_PICKLE = 'data.pkl'


def find_root(archive: zipfile.ZipFile) -> str | None:
    """The name of the folder that holds the pickle, if the archive is PyTorch's."""
    parts = [name.split('/') for name in archive.namelist()]
    return next((part[0] for part in parts if len(part) == 2 and part[1] == _PICKLE), None)


def read_torch_archive(file: BinaryIO) -> Any:
    """Read what `torch.save` wrote."""
    size = Stream(file).size
    with open_zip(file) as archive:
        root = find_root(archive)
        entries = {entry.filename: entry for entry in archive.infolist()}
        outside = [name for name in entries if not name.startswith(f'{root}/')]
        if outside:
            raise FormatError(f'{quote(outside[0])} is not in the folder of its pickle, {quote(root)}')
        if f'{root}/constants.pkl' in entries or any(name.startswith(f'{root}/code/') for name in entries):
            raise FormatError('it is a TorchScript archive, which holds code', NOT_EXECUTED)
        compressed = [entry.filename for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise FormatError(f'{quote(compressed[0])} in it is compressed; PyTorch stores its numbers uncompressed')
        if sum(entry.file_size for entry in entries.values()) > size:
            raise FormatError(f'its entries overlap: together they are larger than its {size} bytes')
        table = TensorTable()
        stream = Stream(io.BytesIO(read_entry(archive, entries[f'{root}/{_PICKLE}'])))
        loaded = TensorUnpickler(stream, table).load()
        if stream.left:
            raise FormatError(f'{stream.left} bytes follow its pickle')
        for key, storage in table.storages.items():
            entry = entries.get(f'{root}/data/{key}')
            if entry is None or entry.file_size != storage.size:
                found = 'is missing' if entry is None else f'has {entry.file_size} bytes'
                raise FormatError(f'storage {quote(key)} of {storage.size} bytes {found}')
        numbers = {name for name, entry in entries.items() if name.startswith(f'{root}/data/') and entry.file_size}
        unused = numbers - {f'{root}/data/{key}' for key in table.storages}
        if unused:
            raise FormatError(f'{quote(min(unused))} in it belongs to no tensor')
        table.check_size(size)
        order = read_entry(archive, entries[f'{root}/byteorder']) if f'{root}/byteorder' in entries else b'little'
        if order not in (b'little', b'big'):
            raise FormatError(f'its byte order is {quote(bytes(order))}')
        for key, storage in table.storages.items():
            content = read_entry(archive, entries[f'{root}/data/{key}'])
            if order == b'big':
                content = bytearray(np.frombuffer(content, f'u{storage.dtype.itemsize}').byteswap().tobytes())
            table.fill(storage, content)
    return loaded
