"""A fingerprint of data, by which a run knows whether it resumes with the same images."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .datasets import ImageDataset, ImageStream
from .folders import ClassFolders, stamp


def fingerprint(*parts: ImageDataset | ImageStream) -> str:
    """The number of images of each part, and a hash of their names, labels, sizes and modification times.

    Files are not read. A data set in memory is hashed by its pixels; of a named one the files are of its library.
    Streams other than webdataset's are known by their lengths only.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.class_names()).encode())
        for line in _lines(part):
            digest.update(line.encode('utf-8', 'surrogateescape') + b'\n')
    return f'{"+".join(str(part.total) for part in parts)} images, files {digest.hexdigest()[:16]}'


def _lines(part: ImageDataset | ImageStream) -> Iterator[str]:
    """What changes if the images do."""
    yield str(part.total)
    if isinstance(part, ImageStream):
        for shard in part.shards or ():
            yield f'{shard} {stamp(Path(part.dataset.reader.root) / shard)}'
    elif isinstance(part.reader, ClassFolders):
        yield from part.reader.stamps(part.indices)
    else:
        yield repr([*part.indices])
        yield repr(part.targets())
        for path, _ in part.files or ():
            yield f'{path} {stamp(path)}'
        for file in getattr(getattr(part.reader, 'dataset', None), 'cache_files', ()):  # of Hugging Face's library
            yield f'{Path(file["filename"]).name} {stamp(file["filename"])}'
        pixels = getattr(part.dataset, 'data', None)  # of torchvision's data sets in memory
        if pixels is not None:
            yield hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
