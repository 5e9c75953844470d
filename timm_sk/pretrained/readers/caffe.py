"""Caffe's `.caffemodel`: a NetParameter of layers (field 100), of which some have blobs; keys are '<layer>:<blob>'.

Field numbers are those of caffe.proto. Blobs keep their shapes, (num, channels, height, width) in old files.
"""

from typing import Any, BinaryIO

import torch
from torch import Tensor

from .protobuf import BYTES, Wire, declare, parse
from .stream import Refusal, add_tensor, make_tensor, quote, text

LAYERS, V1_LAYERS = 100, 2  # fields of NetParameter
_BLOBS, _SHAPE = 7, 7  # fields of LayerParameter and BlobProto

_MESSAGES = (
    ('BlobShape', (('dim', 1, 'int64*'),)),
    (
        'BlobProto',
        (
            ('num', 1, 'int32'),
            ('channels', 2, 'int32'),
            ('height', 3, 'int32'),
            ('width', 4, 'int32'),
            ('data', 5, 'bytes*'),  # packed floats
            ('shape', _SHAPE, 'BlobShape'),
            ('double_data', 8, 'bytes*'),  # packed doubles
        ),
    ),
    ('LayerParameter', (('name', 1, 'bytes'), ('blobs', _BLOBS, 'BlobProto*'))),
)
_OLD_SHAPE = ('num', 'channels', 'height', 'width')


def read_caffe(file: BinaryIO) -> dict[str, Tensor]:
    """Read every blob.

    Raises:
        Refusal: If the file is no sound NetParameter, or is one of Caffe before 2014.
    """
    layer_class = declare('caffe', _MESSAGES)['LayerParameter']
    wire = Wire()
    tensors: dict[str, Tensor] = {}
    for field in wire.fields(memoryview(file.read())):
        if field.number == V1_LAYERS and field.wire_type == BYTES:
            raise Refusal('it has layers of the old kind V1', "Upgrade it with Caffe's upgrade_net_proto_binary.")
        if field.number != LAYERS or field.wire_type != BYTES:
            continue
        _check_blobs(wire, field.value)
        layer = parse(layer_class, field.value, 'a layer')
        name = text(layer.name, 'the name of a layer')
        for index, blob in enumerate(layer.blobs):
            add_tensor(tensors, f'{name}:{index}', _read_blob(blob, f'blob {index} of layer {quote(name)}'))
    return tensors


def _check_blobs(wire: Wire, layer: memoryview) -> None:
    for field in wire.fields(layer):
        if field.number != _BLOBS or field.wire_type != BYTES:
            continue
        wire.check_shape(field.value, _SHAPE, 'a blob')


def _read_blob(blob: Any, what: str) -> Tensor:
    if blob.HasField('shape'):
        shape = list(blob.shape.dim)
    elif any(blob.HasField(length) for length in _OLD_SHAPE):
        shape = [getattr(blob, length) for length in _OLD_SHAPE]
    else:
        raise Refusal(f'{what} has no shape')
    if blob.double_data:
        return make_tensor(bytearray().join(blob.double_data), torch.float64, shape, what)
    return make_tensor(bytearray().join(blob.data), torch.float32, shape, what)
