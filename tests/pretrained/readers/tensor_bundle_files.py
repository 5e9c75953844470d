"""A writer of TensorFlow's V2 checkpoints, tensor by tensor."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import torch
from pretrained.readers.checkpoint_files import field, varint
from torch import Tensor

MAGIC = bytes.fromhex('57fb808b247547db')
NUMBERS = {torch.float32: 1, torch.float64: 2, torch.int32: 3, torch.int64: 9}
RESTART_INTERVAL = 16


def masked_crc(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)


def entry_bytes(dtype: int, shape: Iterable[int], shard: int, offset: int, size: int, crc: int) -> bytes:
    """A BundleEntryProto; fields that are 0 are left out, except the shape."""
    dims = b''.join(field(2, field(1, length)) for length in shape)
    numbers = b''.join(field(number, value) for number, value in ((3, shard), (4, offset), (5, size)) if value)
    return field(1, dtype) + field(2, dims) + numbers + b'\x35' + struct.pack('<I', crc)


def block_bytes(entries: Iterable[tuple[bytes, bytes]], *, kind: int = 0) -> bytes:
    """A block of a table with its trailer."""
    content, restarts, last = bytearray(), [], b''
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % RESTART_INTERVAL == 0:
            restarts.append(len(content))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    content += struct.pack(f'<{len(restarts) + 1}I', *restarts, len(restarts)) + bytes([kind])
    return bytes(content) + struct.pack('<I', masked_crc(bytes(content)))


def table_bytes(records: list[tuple[bytes, bytes]], *, per_block: int = 10_000, metadata: bytes | None = None) -> bytes:
    """A table of blocks with so many records each."""
    content, handles = b'', []
    for begin in range(0, len(records), per_block):
        block = block_bytes(records[begin : begin + per_block])
        handles.append((records[begin : begin + per_block][-1][0], handle(len(content), block)))
        content += block
    metadata = block_bytes([]) if metadata is None else metadata
    index = block_bytes(handles)
    footer = handle(len(content), metadata) + handle(len(content) + len(metadata), index)
    return content + metadata + index + footer.ljust(40, b'\0') + MAGIC


def handle(offset: int, block: bytes) -> bytes:
    return varint(offset) + varint(len(block) - 5)


def header(num_shards: int, *, big_endian: bool = False) -> tuple[bytes, bytes]:
    return b'', field(1, num_shards) + (field(2, 1) if big_endian else b'') + field(3, field(1, 1))


def write_bundle(
    prefix: Path, tensors: Iterable[tuple[str, Tensor | bytes]], *, num_shards: int = 1, per_block: int = 10_000
) -> Path:
    """Write a checkpoint whose tensors go to the shards in turn; bytes are a string tensor. Returns the index's path.

    Args:
        prefix: Path without the suffixes.
        tensors: Sorted by name; one tensor at a time is in memory.
        num_shards: Number of shards.
        per_block: Records of the index in a block.
    """
    paths = [prefix.with_name(f'{prefix.name}.data-{shard:05}-of-{num_shards:05}') for shard in range(num_shards)]
    files = [path.open('wb') for path in paths]
    records = [header(num_shards)]
    for count, (name, tensor) in enumerate(tensors):
        shard = count % num_shards
        is_string = isinstance(tensor, bytes)
        content = tensor if is_string else tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        number, shape = (7, ()) if is_string else (NUMBERS[tensor.dtype], tensor.shape)
        entry = entry_bytes(number, shape, shard, files[shard].tell(), len(content), masked_crc(content))
        records.append((name.encode(), entry))
        if is_string or tensor.any():
            files[shard].write(content)
        else:
            files[shard].seek(len(content), os.SEEK_CUR)  # a hole
    for file in files:
        file.truncate()
        file.close()
    path = prefix.with_name(f'{prefix.name}.index')
    path.write_bytes(table_bytes(records, per_block=per_block))
    return path
