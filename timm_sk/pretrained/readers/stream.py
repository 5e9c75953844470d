"""What the readers share: refusing a file, reading it without trusting its lengths, making tensors of its bytes."""

import math
import os
import struct
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch import Tensor

ADVICE = 'If it was downloaded, download it again.'

# Limits on what costs memory beyond a file's own size. resnest269e has 2,447 tensors.
MOST_TENSORS = 20_000
MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 1 << 48

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class Refusal(ValueError):  # noqa: N818  (never leaves the package: becomes an UnreadableCheckpointError there)
    """Why a file is not read.

    Attributes:
        reason: What is wrong, without the file's name and without a full stop.
        advice: A sentence that says what to do next.
    """

    def __init__(self, reason: str, advice: str = ADVICE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Stream:
    """A file that never allocates more than it holds, however long a piece is asked for."""

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
        return self._file.read(max(0, min(length, self.left)))

    def readline(self) -> bytes:
        """The bytes up to and with the next line feed."""
        return self._file.readline()

    def take(self, length: int, what: str) -> bytearray:
        """Exactly `length` bytes.

        Raises:
            Refusal: If the file does not hold that many more.
        """
        self._check(length, what)
        taken = bytearray(length)
        if self._file.readinto(taken) != length:  # type: ignore[attr-defined]  # every binary file of io has it
            raise Refusal(f'{what} was cut off while it was read')
        return taken

    def skip(self, length: int, what: str) -> None:
        """Go `length` bytes ahead.

        Raises:
            Refusal: If the file does not hold that many more.
        """
        self._check(length, what)
        self._file.seek(length, os.SEEK_CUR)

    def number(self, layout: str, what: str) -> int:
        """One integer; `layout` as in `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def _check(self, length: int, what: str) -> None:
        if not 0 <= length <= self.left:
            raise Refusal(f'{what} should have {length} bytes, where {self.left} are left in the file')


def quote(name: object) -> str:
    """A name from a file as a message shows it: escaped, and never longer than a line."""
    quoted = repr(name)
    return quoted if len(quoted) <= 80 else f'{quoted[:77]}...'


def text(raw: bytes | bytearray, what: str) -> str:
    """Decode a name.

    Raises:
        Refusal: If it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f'{what} is not valid UTF-8: {bytes(raw[:20])!r}') from error


def count_bytes(dtype: torch.dtype, shape: Sequence[int], what: str) -> int:
    """Bytes of a dense tensor.

    Raises:
        Refusal: If no tensor has this shape.
    """
    plausible = len(shape) <= MOST_DIMENSIONS and all(type(length) is int and length >= 0 for length in shape)
    if not plausible or math.prod(max(length, 1) for length in shape) > _MOST_ELEMENTS:
        raise Refusal(f'{what} has an impossible shape, {_shorten(shape)}')
    return math.prod(shape) * dtype.itemsize


def make_tensor(raw: bytearray, dtype: torch.dtype, shape: Sequence[int], what: str) -> Tensor:
    """A tensor of little-endian bytes, which it keeps.

    Raises:
        Refusal: If there are more or fewer bytes than the shape needs.
    """
    needed = count_bytes(dtype, shape, what)
    if len(raw) != needed:
        raise Refusal(f'{what} has {len(raw)} bytes, where {_shorten(shape)} of {dtype} needs {needed}')
    if not raw:
        return torch.empty(tuple(shape), dtype=dtype)
    if dtype is torch.bool:  # a bool that is neither 0 nor 1 would be undefined
        return torch.frombuffer(raw, dtype=torch.uint8).ne(0).reshape(tuple(shape))
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


def add_tensor(tensors: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    """Enter a tensor under a new key.

    Raises:
        Refusal: If the key is taken, or there are too many tensors.
    """
    if key in tensors:
        raise Refusal(f'the key {quote(key)} is there twice')
    if len(tensors) == MOST_TENSORS:
        raise Refusal(f'it holds more than {MOST_TENSORS} tensors')
    tensors[key] = tensor


def _shorten(shape: Sequence[int]) -> str:
    described = ', '.join(str(length) if abs(length) < 1 << 64 else 'huge' for length in shape[:MOST_DIMENSIONS])
    return f'[{described}{", …" if len(shape) > MOST_DIMENSIONS else ""}]'
