"""MindSpore's `.ckpt`: a Checkpoint of values, each a tag and a tensor: dimensions, type and numbers as bytes."""

from typing import BinaryIO

import torch
from torch import Tensor

from .protobuf import BYTES, VARINT, Wire, check_shape_size, integers, single
from .stream import FormatError, add_tensor, make_tensor, quote, text

VALUES = 1  # of Checkpoint
_TAG, _TENSOR = 1, 2  # of Value
_DIMENSIONS, _TYPE, _CONTENT = 1, 2, 3  # of TensorProto

_DTYPES = {
    b'Float64': torch.float64,
    b'Float32': torch.float32,
    b'Float16': torch.float16,
    b'BFloat16': torch.bfloat16,
    b'Int64': torch.int64,
    b'Int32': torch.int32,
    b'UInt8': torch.uint8,
    b'Bool': torch.bool,
}


def read_mindspore(file: BinaryIO) -> dict[str, Tensor]:
    """Read every parameter; one that is split over several values is refused."""
    wire = Wire()
    tensors: dict[str, Tensor] = {}
    checkpoint = wire.fields(memoryview(file.read()))
    if others := checkpoint.keys() - {(VALUES, BYTES)}:
        number, wire_type = min(others)
        raise FormatError(f'it has a field {number} of wire type {wire_type} that no MindSpore file has')
    for message in checkpoint[VALUES, BYTES]:
        value = wire.fields(message)
        tag = text(bytes(single(value[_TAG, BYTES])), 'the name of a parameter')
        if len(value[_TENSOR, BYTES]) != 1:
            raise FormatError(f'{quote(tag)} has {len(value[_TENSOR, BYTES]) or "no"} tensor')
        add_tensor(tensors, tag, _read_tensor(wire, value[_TENSOR, BYTES][0], quote(tag)))
    return tensors


def _read_tensor(wire: Wire, message: memoryview, name: str) -> Tensor:
    tensor = wire.fields(message)
    dimensions = tensor[_DIMENSIONS, VARINT] + tensor[_DIMENSIONS, BYTES]
    check_shape_size(sum(map(len, dimensions)), name)
    kind = bytes(single(tensor[_TYPE, BYTES]))
    dtype = _DTYPES.get(kind)
    if dtype is None:
        names = ', '.join(name.decode() for name in _DTYPES)
        raise FormatError(f'{name} has type {quote(kind)}; expected one of {names}')
    shape, content = integers(dimensions), bytearray(single(tensor[_CONTENT, BYTES]))
    if shape == [0] and content:
        shape = []  # how MindSpore writes a scalar
    return make_tensor(content, dtype, shape, name)
