"""TensorFlow's V2 checkpoints: `PREFIX.index`, and the tensors' bytes in `PREFIX.data-00000-of-00001` and so on.

The index is a LevelDB table from tensor names to the messages of tensorflow/core/protobuf/tensor_bundle.proto: data
blocks, an empty block of metadata, a block with the handles (offset and size) of the data blocks, and a footer with the
handles of the last two. A block is its entries, the positions of restarts (u32 each) and their number, followed by a
type and a CRC32C. An entry is three varints (the length of the prefix that its key shares with the key before it, of
the rest of the key, and of the value), the rest of the key, and the value. A tensor is little-endian bytes at an offset
of a shard, so that single tensors can be read, from a file or from a server.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from .protobuf import BYTES, FIXED32, VARINT, Wire, integers, single, varint
from .stream import FormatError, Stream, add_tensor, count_bytes, make_tensor, quote, text

MAGIC = bytes.fromhex('57fb808b247547db')  # the last bytes of an index
_MAX_INDEX_BYTES = 16 << 20
_MAX_ENTRIES, _MAX_BLOCKS, _MAX_SHARDS, _MAX_KEY_BYTES = 50_000, 4096, 99_999, 1024
_FOOTER_BYTES, _TRAILER_BYTES, _CHUNK_BYTES = 48, 5, 1 << 20

_NUM_SHARDS, _ENDIANNESS = 1, 2  # fields of BundleHeaderProto
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = range(1, 8)  # fields of BundleEntryProto
_DIM, _DIM_SIZE = 2, 1  # fields of TensorShapeProto and its Dim

_STRING = 7
_DTYPES = {1: torch.float32, 2: torch.float64, 3: torch.int32, 9: torch.int64}


class BundleEntry(NamedTuple):
    """Where a tensor's bytes are: in a file, `size` bytes from `offset`, with the masked CRC32C `crc`."""

    dtype: int  # TensorFlow's number
    shape: list[int]
    shard: Path
    offset: int
    size: int
    crc: int


def read_bundle(index: BinaryIO, path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Read a checkpoint from its index and the shards beside it; with `wanted`, only tensors of these names."""
    tensors: dict[str, Tensor] = {}
    for name, entry in read_index(index, path).items():
        if wanted is None or wanted(name):
            add_tensor(tensors, name, read_tensor(name, entry))
    return tensors


def read_index(index: BinaryIO, path: Path) -> dict[str, BundleEntry]:
    """Read an index; the numeric tensors by name, of which no two overlap."""
    if path.suffix != '.index':
        raise FormatError('it is an index of TensorFlow, but its name does not end with .index', 'Rename it.')
    content = index.read(_MAX_INDEX_BYTES + 1)
    if len(content) > _MAX_INDEX_BYTES:
        raise FormatError(f'its index has more than {_MAX_INDEX_BYTES} bytes')
    wire, records = Wire(), _records(memoryview(content))
    key, message = next(records, (b'', memoryview(b'')))
    header = wire.fields(memoryview(b'') if key else message)
    num_shards = _integer(header[_NUM_SHARDS, VARINT])
    if not 1 <= num_shards <= _MAX_SHARDS:
        raise FormatError(f'its index names {num_shards} shards')
    if _integer(header[_ENDIANNESS, VARINT]):
        raise FormatError('its numbers are big-endian', 'Save it again on a little-endian machine.')
    entries: dict[str, BundleEntry] = {}
    for key, message in records:
        name = text(key, 'the name of a tensor')
        entries[name] = _parse_entry(wire, message, quote(name), path, num_shards)
    ends: dict[Path, int] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:5]):  # by shard, offset and size
        if entry.offset < ends.get(entry.shard, 0):
            raise FormatError(f'{quote(name)} overlaps another tensor')
        ends[entry.shard] = entry.offset + entry.size
    return {name: entry for name, entry in entries.items() if entry.dtype != _STRING}


def _records(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of the table; its blocks must follow each other without gaps, so that every byte is checked."""
    if len(view) < _FOOTER_BYTES or bytes(view[-len(MAGIC) :]) != MAGIC:
        raise FormatError('its index does not end with the magic number of a table')
    handles = view[-_FOOTER_BYTES : -len(MAGIC)]
    (*metadata, offset, size), position = _varints(handles, 4)
    if position != len(bytes(handles).rstrip(b'\0')):
        raise FormatError('the footer of its index is damaged')
    blocks = [_varints(value, 2)[0] for _, value in islice(_read_block(view, offset, size), _MAX_BLOCKS)]
    blocks.append(metadata)
    end = 0
    for begin, length in (*blocks, (offset, size), (len(view) - _FOOTER_BYTES, 0)):
        if begin != end:
            raise FormatError(f'a block of its index begins at byte {begin} instead of {end}')
        end = begin + length + _TRAILER_BYTES
    previous = None
    for count, (key, value) in enumerate(record for block in blocks for record in _read_block(view, *block)):
        if count > _MAX_ENTRIES:
            raise FormatError(f'its index has more than {_MAX_ENTRIES} names')
        if previous is not None and key <= previous:
            raise FormatError(f'the names in its index are not in order: {quote(key)} follows {quote(previous)}')
        yield key, value
        previous = key


def _read_block(view: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block, after its checksum is verified."""
    end = offset + size
    if size < 4 or end + _TRAILER_BYTES > len(view):
        raise FormatError(f'a block of its index has {size} bytes from byte {offset} on, the index {len(view)}')
    if view[end]:
        raise FormatError(f'a block of its index is of type {view[end]}, not 0: TensorFlow does not compress it')
    _check_crc(view[offset : end + 1], int.from_bytes(view[end + 1 :][:4], 'little'), 'a block of its index')
    num_restarts = int.from_bytes(view[end - 4 : end], 'little')
    entries = view[offset : max(offset, end - 4 - 4 * num_restarts)]
    position, key = 0, b''
    while position < len(entries):
        (shared, unshared, length), position = _varints(entries, 3, position)
        begin = position + unshared
        if shared > len(key) or shared + unshared > _MAX_KEY_BYTES or begin + length > len(entries):
            raise FormatError('an entry of its index is longer than its block or has a name that is too long')
        key = key[:shared] + bytes(entries[position:begin])
        position = begin + length
        yield key, entries[begin:position]


def _varints(view: memoryview, count: int, position: int = 0) -> tuple[list[int], int]:
    """Some numbers, and the position behind them."""
    numbers = []
    for _ in range(count):
        number, position = varint(view, position)
        numbers.append(number)
    return numbers, position


def _parse_entry(wire: Wire, message: memoryview, what: str, path: Path, num_shards: int) -> BundleEntry:
    fields = wire.fields(message)
    if fields[_SLICES, BYTES]:
        raise FormatError(f'{what} is saved in slices, which are not read', 'Save it again without a partitioner.')
    dims = wire.fields(single(fields[_SHAPE, BYTES]))[_DIM, BYTES]
    shape = [_integer(wire.fields(dim)[_DIM_SIZE, VARINT]) for dim in dims]
    dtype, shard, offset, size = (_integer(fields[number, VARINT]) for number in (_DTYPE, _SHARD, _OFFSET, _SIZE))
    if not 0 <= shard < num_shards or min(offset, size) < 0:
        raise FormatError(f'{what} has {size} bytes from byte {offset} on in shard {shard} of {num_shards}')
    if dtype in _DTYPES and size != (needed := count_bytes(_DTYPES[dtype], shape, what)):
        raise FormatError(f'{what} has {size} bytes, its shape needs {needed}')
    file = path.with_name(f'{path.stem}.data-{shard:05}-of-{num_shards:05}')
    return BundleEntry(dtype, shape, file, offset, size, int.from_bytes(single(fields[_CRC, FIXED32]), 'little'))


def _integer(values: list[memoryview]) -> int:
    """An integer field; those that are 0 may be absent."""
    return next(iter(integers([single(values)])), 0)


def read_tensor(name: str, entry: BundleEntry) -> Tensor:
    """Read a tensor from its shard, and verify its checksum."""
    what = quote(name)
    if entry.dtype not in _DTYPES:
        raise FormatError(f'{what} is of type {entry.dtype}; supported are {", ".join(map(str, _DTYPES))}')
    if not entry.shard.is_file():
        raise FormatError(f'its shard {entry.shard.name} is missing', 'Put it into the same folder.')
    with entry.shard.open('rb') as file:
        stream = Stream(file)
        file.seek(min(entry.offset, stream.size))
        content = stream.take(entry.size, f'{what} in its shard {entry.shard.name}')
    _check_crc(memoryview(content), entry.crc, what)
    return make_tensor(content, _DTYPES[entry.dtype], entry.shape, what)


def _check_crc(content: memoryview, masked: int, what: str) -> None:
    """Compare bytes with their CRC32C, which is stored rotated and with a number added."""
    try:
        from google_crc32c import extend
    except ImportError as error:
        raise FormatError('reading it needs google-crc32c', "Install it: pip install 'timm_sk[convert]'.") from error
    crc = 0
    for begin in range(0, len(content), _CHUNK_BYTES):
        crc = extend(crc, bytes(content[begin : begin + _CHUNK_BYTES]))
    if ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF != masked:
        raise FormatError(f'{what} is damaged: its checksum differs')
