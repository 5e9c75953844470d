"""Paddle's `.pdparams`: a pickle of a dict of NumPy arrays, read without running code and without NumPy's unpickling.

An array is pickled as a call of `_reconstruct`, which makes an empty one, and as its state: version, shape, type,
whether it is in Fortran's order, and bytes. A type is a call of `dtype` and its state, of which the order of the bytes
counts.
"""

import pickle
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .stream import DTYPES, MAX_TENSORS, FormatError, Stream, make_tensor, quote
from .torch_pickle import INSTRUCTIONS, TensorUnpickler
from .torch_tensors import NOT_EXECUTED, TensorTable, exactly

_NAME_TABLE = 'StructuredToParameterName@@'  # Paddle's own names of the parameters, beside the arrays
_TYPES = {'f8': 'F64', 'f4': 'F32', 'f2': 'F16', 'i8': 'I64', 'i4': 'I32', 'u1': 'U8', 'b1': 'BOOL'}


class _Array:
    """Stands for `numpy.ndarray`."""

    tensor: Tensor | None = None


def _reconstruct(cls: Any, shape: Any, code: Any) -> _Array:
    if cls is not _Array:
        raise TypeError(f'{type(cls).__name__} in place of numpy.ndarray')
    return _Array()


def _dtype(code: Any, align: Any = False, copy: Any = False) -> torch.dtype:
    if exactly(str, code) not in _TYPES:
        raise FormatError(f'an array in it has the type {quote(code)}; supported are {", ".join(_TYPES)}')
    return DTYPES[_TYPES[code]]


class _ArrayUnpickler(TensorUnpickler):
    """The unpickler with the instructions and names of NumPy's arrays."""

    instructions = (
        *(code for code in INSTRUCTIONS if code not in (pickle.BINPERSID, pickle.NEWOBJ)),
        *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.SHORT_BINUNICODE),
        *(pickle.FRAME, pickle.MEMOIZE, pickle.STACK_GLOBAL),
    )

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, TensorTable())
        self.functions = {
            'numpy.core.multiarray._reconstruct': _reconstruct,
            'numpy._core.multiarray._reconstruct': _reconstruct,
            'numpy.ndarray': _Array,
            'numpy.dtype': _dtype,
            '_codecs.encode': self.encode,
        }
        self.left = 2 * stream.size  # bytes that arrays, and strings that protocol 2 has for bytes, may still take

    def encode(self, text: Any, encoding: Any) -> bytes:
        """The bytes of an array, which protocol 2 saves as text."""
        if exactly(str, encoding) != 'latin1':
            raise ValueError(f'the encoding {encoding:.20} in place of latin1')
        self.count(len(exactly(str, text)))
        return text.encode('latin1')

    def count(self, size: int) -> None:
        """Check that arrays do not share the file's bytes so often that they outgrow it."""
        self.left -= size
        if self.left < 0:
            raise FormatError('its arrays would take more than twice the size of the file')

    def load_proto(self) -> None:
        if (protocol := self.read(1)[0]) not in (2, 3, 4):
            raise FormatError(f'its pickle has protocol {protocol}; supported are 2 to 4')

    def load_build(self) -> None:
        state, target = exactly(tuple, self.stack.pop()), self.stack[-1]
        if type(target) is _Array:
            _, shape, dtype, is_fortran, content = state
            if exactly(bool, is_fortran):
                raise FormatError("an array in it is in Fortran's order, which Paddle does not save")
            self.count(len(exactly(bytes, content)))
            dtype, shape = exactly(torch.dtype, dtype), exactly(tuple, shape)
            target.tensor = make_tensor(bytearray(content), dtype, shape, 'an array in it')
        elif type(target) is not torch.dtype:
            raise FormatError(f'its pickle sets the state of a {type(target).__name__}', NOT_EXECUTED)
        elif exactly(str, state[1]) not in ('<', '|'):
            raise FormatError(f'an array in it has the byte order {quote(state[1])}; supported is little-endian, "<"')


def read_numpy_pickle(file: BinaryIO) -> dict[Any, Any]:
    """Read every array under its name."""
    stream = Stream(file)
    loaded = _ArrayUnpickler(stream).load()
    if stream.left:
        raise FormatError(f'{stream.left} bytes follow its pickle')
    if type(loaded) is not dict:
        raise FormatError(f'it holds a {type(loaded).__name__}, not a dict of arrays')
    if len(loaded) > MAX_TENSORS:
        raise FormatError(f'it holds more than {MAX_TENSORS} tensors')
    if type(loaded.get(_NAME_TABLE)) is dict:
        del loaded[_NAME_TABLE]
    return {key: value.tensor if isinstance(value, _Array) else value for key, value in loaded.items()}
