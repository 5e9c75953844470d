"""The safetensors format, read strictly: every byte of the file belongs to the header or to exactly one tensor.

Not by the package `safetensors`: it takes the last of two equal keys, does not keep the file's order, copies the whole
file and panics where memory is short.
"""

import json
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .stream import DTYPES, MAX_TENSORS, FormatError, Stream, count_bytes, make_tensor, quote, text

_MAX_HEADER_BYTES = 1 << 20  # parsed, JSON takes up to 20 times as much; resnest269e needs 231,896


def read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """Read every tensor, in the order of the data."""
    stream = Stream(file)
    length = stream.number('<Q', 'the length of the header')
    if length > stream.left:
        raise FormatError(f'its header should have {length} bytes, where {stream.left} are left in the file')
    if length > _MAX_HEADER_BYTES:
        raise FormatError(f'its header has {length} bytes; the limit is {_MAX_HEADER_BYTES}')
    header = _parse(text(stream.take(length, 'the header'), 'its header'))
    if not isinstance(header.pop('__metadata__', {}), dict):
        raise FormatError('its __metadata__ is not a mapping')
    if len(header) > MAX_TENSORS:
        raise FormatError(f'it has more than {MAX_TENSORS} tensors')
    entries = sorted(((key, *_entry(key, entry)) for key, entry in header.items()), key=lambda row: (row[3], row[4]))
    data_bytes, end = stream.left, 0
    for key, _, _, begin, stop in entries:  # all of them, before anything is allocated
        if stop > data_bytes:
            raise FormatError(f'{quote(key)} ends at byte {stop} of the data, which has {data_bytes}')
        if begin != end:
            raise FormatError(
                f'{quote(key)} {"overlaps another tensor" if begin < end else f"leaves a gap of {begin - end} bytes"}'
            )
        end = stop
    if end != data_bytes:
        raise FormatError(f'{data_bytes - end} bytes of its data belong to no tensor')
    return {
        key: make_tensor(stream.take(stop - begin, quote(key)), dtype, shape, quote(key))
        for key, dtype, shape, begin, stop in entries
    }


def _parse(header: str) -> dict[str, Any]:
    try:
        parsed = json.loads(header, object_pairs_hook=_unique)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f'its header is not valid JSON ({type(error).__name__})') from error
    if not isinstance(parsed, dict):
        raise FormatError('its header is not a JSON object')
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise FormatError(f'the key {quote(key)} appears twice in its header')
        mapping[key] = value
    return mapping


def _entry(key: str, entry: object) -> tuple[torch.dtype, list[int], int, int]:
    """Dtype, shape, begin and end of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise FormatError(f'{quote(key)} is not described by dtype, shape and data_offsets')
    dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f'{quote(key)} has type {quote(dtype)}; expected one of {", ".join(DTYPES)}')
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise FormatError(f'the shape of {quote(key)} is not a list of integers')
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and 0 <= offset < 1 << 63 for offset in offsets)
    ):
        raise FormatError(f'the data_offsets of {quote(key)} are not two offsets')
    begin, end = offsets
    needed = count_bytes(DTYPES[dtype], shape, quote(key))
    if end - begin != needed:
        raise FormatError(
            f'the data_offsets of {quote(key)} span {end - begin} bytes from {begin}, its shape needs {needed}'
        )
    return DTYPES[dtype], shape, begin, end
