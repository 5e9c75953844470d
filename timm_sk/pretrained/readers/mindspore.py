"""MindSpore's `.ckpt`: a Checkpoint of values (field 1), each a tag and a tensor: dims, type and numbers as bytes."""

from typing import BinaryIO

import torch
from torch import Tensor

from .protobuf import BYTES, Wire, declare, parse
from .stream import Refusal, add_tensor, make_tensor, quote, text

VALUES = 1  # field of Checkpoint
_TENSOR, _DIMS = 2, 1  # fields of Value and TensorProto

_MESSAGES = (
    ('TensorProto', (('dims', _DIMS, 'int64*'), ('tensor_type', 2, 'bytes'), ('tensor_content', 3, 'bytes'))),
    ('Value', (('tag', 1, 'bytes'), ('tensor', _TENSOR, 'TensorProto'))),
)
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
    """Read every parameter.

    Raises:
        Refusal: If the file is no sound Checkpoint, or a parameter is split over several values.
    """
    value_class = declare('mindspore', _MESSAGES)['Value']
    wire = Wire()
    tensors: dict[str, Tensor] = {}
    for field in wire.fields(memoryview(file.read())):
        if field.number != VALUES or field.wire_type != BYTES:
            raise Refusal(f'it has a field {field.number} of wire type {field.wire_type} that no MindSpore file has')
        for part in wire.fields(field.value):
            if part.number == _TENSOR and part.wire_type == BYTES:
                wire.check_shape(part.value, _DIMS, 'a parameter')
        value = parse(value_class, field.value, 'a parameter')
        tag = text(value.tag, 'the name of a parameter')
        what, tensor = quote(tag), value.tensor
        if not value.HasField('tensor'):
            raise Refusal(f'{what} has no tensor')
        dtype = _DTYPES.get(tensor.tensor_type)
        if dtype is None:
            names = ', '.join(name.decode() for name in _DTYPES)
            raise Refusal(f'{what} is of type {quote(tensor.tensor_type)}; read are {names}')
        shape, content = list(tensor.dims), bytearray(tensor.tensor_content)
        if shape == [0] and content:
            shape = []  # how MindSpore writes a scalar
        add_tensor(tensors, tag, make_tensor(content, dtype, shape, what))
    return tensors
