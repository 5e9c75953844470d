"""Detect the format of a file from its content alone."""

import os
import tarfile
from contextlib import suppress
from typing import BinaryIO

from . import caffemodel, mindspore
from .mxnet import LIST_MAGIC
from .protobuf import BYTES, VARINT, varint
from .stream import FormatError
from .tensor_bundle import MAGIC as BUNDLE_MAGIC
from .torch_archive import find_root
from .torch_stream import MAGIC
from .zips import open_zip

_HEAD_BYTES = 1 << 16
_ZIP = (b'PK\x03\x04', b'PK\x05\x06')
_CAFFE_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 100}  # of NetParameter

# Files that are mistaken for checkpoints, by their first bytes.
_OTHERS = (
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file, of Keras for instance'),
    (b'\x1f\x8b', 'compressed with gzip'),
    (b'BZh', 'compressed with bzip2'),
    (b'\xfd7zXZ\x00', 'compressed with xz'),
    (b'version https://git-lfs', 'a pointer of Git LFS, not the file itself'),
    (b'<', 'a web page, perhaps of a download that asks for confirmation'),
    (b'{', 'JSON text'),
)


def detect(file: BinaryIO) -> str:
    """Detect the format; the file is left at its beginning.

    Returns:
        'torch', 'torch-legacy', 'numpy-pickle' (Paddle, or any other pickle), 'safetensors', 'caffe', 'mindspore',
        'mxnet', 'tensorflow-index', or 'zip' for one file in an archive.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head:
        raise FormatError('it is empty')
    if head.startswith(_ZIP):
        with open_zip(file) as archive:
            found = 'zip' if find_root(archive) is None else 'torch'
        file.seek(0)
        return found
    if _is_tar(head):
        raise FormatError(
            "it is a tar archive, PyTorch's format before 0.1.10, which cannot be read without running its pickles",
            'If you trust it, load it with an old PyTorch and save its state dict again.',
        )
    if head.startswith(MAGIC):
        return 'torch-legacy'
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return 'numpy-pickle'
    if int.from_bytes(head[:8], 'little') == LIST_MAGIC:
        return 'mxnet'
    if head[6:9] == b'\0\0{':  # a header of less than 2**48 bytes
        return 'safetensors'
    file.seek(-min(len(head), len(BUNDLE_MAGIC)), os.SEEK_END)
    tail = file.read()
    file.seek(0)
    if tail == BUNDLE_MAGIC:
        return 'tensorflow-index'
    for beginning, description in _OTHERS:
        if head.startswith(beginning):
            raise FormatError(f'it is {description}', 'Download the checkpoint itself.')
    return _protobuf_format(head)


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
        return False
    return True


def _protobuf_format(head: bytes) -> str:
    """MindSpore's first field is a message that begins with a tag; Caffe has layers."""
    view, position = memoryview(head), 0
    with suppress(FormatError):
        while position < len(view):
            tag, position = varint(view, position)
            number, wire_type = tag >> 3, tag & 7
            if number not in _CAFFE_FIELDS or wire_type not in (VARINT, BYTES):
                break
            first = position == 1
            length, position = varint(view, position)
            if wire_type == VARINT:
                continue
            if number in (caffemodel.LAYERS, caffemodel.V1_LAYERS):
                return 'caffe'
            if number == mindspore.VALUES and first and _is_value(view[position : position + length]):
                return 'mindspore'
            position += length
    raise FormatError(
        'its format is unknown',
        'Supported are files of PyTorch, safetensors, Caffe, MindSpore, MXNet and Paddle, zips of one such file, and '
        'the .index of a TensorFlow checkpoint.',
    )


def _is_value(message: memoryview) -> bool:
    """Whether it begins with a name as field 1 and continues with a message as field 2."""
    if bytes(message[:1]) != b'\x0a':
        return False
    length, position = varint(message, 1)
    return bytes(message[position + length : position + length + 1]) == b'\x12'
