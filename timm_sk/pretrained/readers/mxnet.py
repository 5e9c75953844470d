"""MXNet's `.params`: a list of dense arrays and their names, as `mx.nd.save` and Gluon's `save_parameters` write it.

Integers are little-endian. A file is the magic and a reserved word (u64 each), the number of arrays (u64) and the
arrays, the number of names (u64) and the names, each a length (u64) and text. An array is a magic (u32), the kind of
storage (i32, not in V1), the number of dimensions (i32) and the dimensions (i64), device type and index (i32 each),
the type of its numbers (i32) and the numbers.
"""

from typing import BinaryIO

import torch
from torch import Tensor

from .stream import MAX_DIMENSIONS, MAX_TENSORS, FormatError, Stream, add_tensor, count_bytes, make_tensor, text

LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0

_DTYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    6: torch.int64,
    7: torch.bool,
    12: torch.bfloat16,
}


def read_mxnet(file: BinaryIO) -> dict[str, Tensor]:
    """Read every array under its name, without the prefixes `arg:` and `aux:` that symbolic networks save."""
    stream = Stream(file)
    if stream.number('<Q', 'the magic number') != LIST_MAGIC:
        raise FormatError('it does not begin with the magic number of an MXNet list')
    stream.take(8, 'the reserved word')
    count = stream.number('<Q', 'the number of arrays')
    if count > min(MAX_TENSORS, stream.left):
        raise FormatError(f'it should hold {count} arrays, too many for its {stream.size} bytes or for this reader')
    arrays = [_read_array(stream, f'array {index}') for index in range(count)]
    named = stream.number('<Q', 'the number of names')
    if named != count:
        raise FormatError(f'it holds {count} arrays and {named} names')
    tensors: dict[str, Tensor] = {}
    for index, array in enumerate(arrays):
        length = stream.number('<Q', f'the length of name {index}')
        name = text(stream.take(length, f'name {index}'), f'name {index}')
        add_tensor(tensors, name.removeprefix('arg:').removeprefix('aux:'), array)
    if stream.left:
        raise FormatError(f'{stream.left} bytes follow its last name')
    return tensors


def _read_array(stream: Stream, what: str) -> Tensor:
    magic = stream.number('<I', f'the magic number of {what}')
    if magic not in (_V1, _V2, _V3):
        raise FormatError(f'{what} begins with {magic:#x}, not with the magic number of a V1, V2 or V3 array')
    if magic != _V1 and (storage := stream.number('<i', f'the storage of {what}')) != _DENSE:
        raise FormatError(f'{what} has storage of kind {storage}; only dense arrays, kind {_DENSE}, are supported')
    dimensions = stream.number('<i', f'the number of dimensions of {what}')
    if not (0 if magic == _V3 else 1) <= dimensions <= MAX_DIMENSIONS:  # before V3, 0 dimensions meant no array
        raise FormatError(f'{what} has {dimensions} dimensions')
    shape = [stream.number('<q', f'the shape of {what}') for _ in range(dimensions)]
    stream.take(8, f'the device of {what}')
    dtype = _DTYPES.get(flag := stream.number('<i', f'the type of {what}'))
    if dtype is None:
        raise FormatError(f'{what} has type {flag}; expected one of {", ".join(map(str, _DTYPES))}')
    return make_tensor(stream.take(count_bytes(dtype, shape, what), what), dtype, shape, what)
