"""Caffe's `.caffemodel`: a NetParameter of layers, of which some have blobs; keys are '<layer>:<blob>'.

Field numbers are those of caffe.proto. Blobs keep their shapes, (num, channels, height, width) in old files.
"""

from typing import BinaryIO

import torch
from torch import Tensor

from .protobuf import BYTES, VARINT, Wire, check_shape_size, integers, single
from .stream import FormatError, add_tensor, make_tensor, quote, text

LAYERS, V1_LAYERS = 100, 2  # of NetParameter
_NAME, _BLOBS = 1, 7  # of LayerParameter
_OLD_SHAPE, _FLOATS, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8  # of BlobProto
_DIMENSIONS = 1  # of BlobShape


def read_caffe(file: BinaryIO) -> dict[str, Tensor]:
    """Read every blob; files of Caffe before 2014 are refused."""
    wire = Wire()
    tensors: dict[str, Tensor] = {}
    net = wire.fields(memoryview(file.read()))
    if net[V1_LAYERS, BYTES]:
        raise FormatError('it has layers of the old kind V1', "Upgrade it with Caffe's upgrade_net_proto_binary.")
    for message in net[LAYERS, BYTES]:
        layer = wire.fields(message)
        name = text(bytes(single(layer[_NAME, BYTES])), 'the name of a layer')
        for index, blob in enumerate(layer[_BLOBS, BYTES]):
            add_tensor(tensors, f'{name}:{index}', _read_blob(wire, blob, f'blob {index} of layer {quote(name)}'))
    return tensors


def _read_blob(wire: Wire, message: memoryview, name: str) -> Tensor:
    blob = wire.fields(message)
    lengths = [blob[number, VARINT] for number in _OLD_SHAPE]
    if blob[_SHAPE, BYTES]:
        check_shape_size(sum(map(len, blob[_SHAPE, BYTES])), name)
        dimensions = wire.fields(memoryview(b''.join(blob[_SHAPE, BYTES])))
        shape = integers(dimensions[_DIMENSIONS, VARINT] + dimensions[_DIMENSIONS, BYTES])
    elif any(lengths):
        shape = [sum(integers(length[-1:])) for length in lengths]
    else:
        raise FormatError(f'{name} has no shape')
    if blob[_DOUBLES, BYTES] and blob[_FLOATS, BYTES]:
        raise FormatError(f'{name} has numbers of two types')
    if blob[_DOUBLES, BYTES]:
        return make_tensor(bytearray().join(blob[_DOUBLES, BYTES]), torch.float64, shape, name)
    return make_tensor(bytearray().join(blob[_FLOATS, BYTES]), torch.float32, shape, name)
