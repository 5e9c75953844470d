"""PyTorch's format since 1.6: a zip of a pickle, `<name>/data.pkl`, and of its storages, `<name>/data/<key>`."""

import io
import zipfile
from typing import Any, BinaryIO

from .pickle_contents import NOT_RUN, Contents
from .pickle_vm import follow
from .stream import Refusal, Stream, quote
from .torch_stream import load
from .zips import check_entry, open_zip, read_entry

_PICKLE = 'data.pkl'


def find_root(archive: zipfile.ZipFile) -> str | None:
    """The name of the folder that holds the pickle, if the archive is PyTorch's."""
    parts = [name.split('/') for name in archive.namelist()]
    return next((part[0] for part in parts if len(part) == 2 and part[1] == _PICKLE), None)


def read_torch_archive(file: BinaryIO) -> Any:
    """Load what `torch.save` wrote, after checking that its numbers agree.

    Raises:
        Refusal: If it holds more than tensors and containers, or its lengths lie.
    """
    size = Stream(file).size
    with open_zip(file) as archive:
        root = find_root(archive)
        entries = {entry.filename: entry for entry in archive.infolist()}
        outside = [name for name in entries if not name.startswith(f'{root}/')]
        if outside:
            raise Refusal(f'{quote(outside[0])} is not in the folder of its pickle, {quote(root)}')
        if f'{root}/constants.pkl' in entries or any(name.startswith(f'{root}/code/') for name in entries):
            raise Refusal('it is a TorchScript archive, which holds code', NOT_RUN)
        compressed = [entry.filename for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise Refusal(f'{quote(compressed[0])} in it is compressed; PyTorch stores its numbers as they are')
        if sum(entry.file_size for entry in entries.values()) > size:
            raise Refusal(f'its entries overlap: together they are larger than its {size} bytes')
        contents = Contents()
        pickle = Stream(io.BytesIO(read_entry(archive, entries[f'{root}/{_PICKLE}'])))
        follow(pickle, contents)
        if pickle.left:
            raise Refusal(f'{pickle.left} bytes follow its pickle')
        for key, storage in contents.storages.items():
            entry = entries.get(f'{root}/data/{key}')
            if entry is None or entry.file_size != storage.size:
                found = 'is missing' if entry is None else f'has {entry.file_size} bytes'
                raise Refusal(f'storage {quote(key)} of {storage.size} bytes {found}')
            check_entry(archive, entry)
    file.seek(0)
    return load(file, contents, size)
