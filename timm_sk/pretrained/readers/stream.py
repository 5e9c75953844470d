"""Shared by all readers: the error, a file whose lengths are not trusted, tensors from bytes."""

import math
import os
import struct
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch import Tensor

# Limits on what costs memory beyond a file's own size. resnest269e has 2,447 tensors.
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 48
_CHEAP_BYTES = 4096  # allocated without a look at what the file has left

DTYPES = {  # by their names in safetensors
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}


class FormatError(ValueError):
    """Raised inside the readers when a file cannot be read; callers get an UnreadableCheckpointError.

    The reason says what is wrong, without the file's name and without a full stop; the advice is a sentence.
    """

    def __init__(self, reason: str, advice: str = 'If it was downloaded, download it again.') -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Stream:
    """A file of which no more is read, or allocated, than it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        position = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(position)

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self._file.tell()

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file."""
        if length > _CHEAP_BYTES:
            length = min(length, self.left)
        return self._file.read(max(0, length))

    def readline(self) -> bytes:
        """The bytes up to and with the next line feed."""
        return self._file.readline()

    def take(self, length: int, what: str) -> bytearray:
        """Exactly `length` bytes; an error if the file does not have them."""
        if not 0 <= length <= self.left:
            raise FormatError(f'{what} should have {length} bytes, where {self.left} are left in the file')
        taken = bytearray(length)
        if self._file.readinto(taken) != length:  # type: ignore[attr-defined]  # every binary file of io has it
            raise FormatError(f'{what} was cut off while it was read')
        return taken

    def number(self, layout: str, what: str) -> int:
        """One integer; `layout` is a format of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]


def quote(name: object) -> str:
    """A name from a file, for a message: escaped and shortened."""
    quoted = repr(name)
    return quoted if len(quoted) <= 80 else f'{quoted[:77]}...'


def shorten(names: Sequence[str]) -> str:
    """A list of names, for a message: the first five."""
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + more


def text(raw: bytes | bytearray, what: str) -> str:
    """Decode a name, which must be UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f'{what} is not valid UTF-8: {bytes(raw[:20])!r}') from error


def count_bytes(dtype: torch.dtype, shape: Sequence[int], what: str) -> int:
    """Bytes of a dense tensor; an error if no tensor has this shape."""
    plausible = len(shape) <= MAX_DIMENSIONS and all(type(length) is int and length >= 0 for length in shape)
    if not plausible or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:
        raise FormatError(f'{what} has an impossible shape, {_show_shape(shape)}')
    return math.prod(shape) * dtype.itemsize


def make_tensor(raw: bytearray, dtype: torch.dtype, shape: Sequence[int], what: str) -> Tensor:
    """A tensor that shares the memory of little-endian bytes, exactly as many as its shape needs."""
    needed = count_bytes(dtype, shape, what)
    if len(raw) != needed:
        raise FormatError(f'{what} has {len(raw)} bytes, where {_show_shape(shape)} of {dtype} needs {needed}')
    if not raw:
        return torch.empty(tuple(shape), dtype=dtype)
    if dtype is torch.bool:  # a bool that is neither 0 nor 1 would be undefined
        return torch.frombuffer(raw, dtype=torch.uint8).ne(0).reshape(tuple(shape))
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


def add_tensor(tensors: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    """Add a tensor under a new key, up to a number of tensors."""
    if key in tensors:
        raise FormatError(f'the key {quote(key)} appears twice')
    if len(tensors) == MAX_TENSORS:
        raise FormatError(f'it has more than {MAX_TENSORS} tensors')
    tensors[key] = tensor


def _show_shape(shape: Sequence[int]) -> str:
    described = ', '.join(str(length) if abs(length) < 1 << 64 else 'huge' for length in shape[:MAX_DIMENSIONS])
    return f'[{described}{", …" if len(shape) > MAX_DIMENSIONS else ""}]'
