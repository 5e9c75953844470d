"""Checkpoint files as bytes: valid ones of every format, and the pieces to forge others from."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from timm_sk.pretrained.readers.formats import detect

GIB = 1 << 30
SAMPLES = Path(__file__).resolve().parents[2] / 'data' / 'containers'
EXPECTED = load_file(SAMPLES / 'expected.safetensors')
MAGIC_PICKLE = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL_PICKLE = pickle.dumps(1001, 2)

STATE_DICT = {
    'conv.weight': torch.arange(24.0).reshape(2, 3, 2, 2),
    'fc.weight': torch.arange(6).double().reshape(2, 3).t(),  # not contiguous
    'half': torch.tensor([1.5, -2.0]).half(),
    'brain': torch.tensor([[0.5]]).bfloat16(),
    'count': torch.tensor(7),
    'index': torch.tensor([3, -4], dtype=torch.int32),
    'byte': torch.tensor([0, 255], dtype=torch.uint8),
    'flag': torch.tensor([True, False]),
    'empty': torch.zeros(0, 3),
}


def detect_format(path: Path) -> str:
    with path.open('rb') as file:
        return detect(file)


def torch_bytes(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zip_bytes(entries: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def archive_of(pickled: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A PyTorch archive around a pickle."""
    data = {f'archive/data/{key}': content for key, content in (storages or {}).items()}
    return zip_bytes({'archive/data.pkl': pickled, 'archive/byteorder': b'little', **data, 'archive/version': b'3\n'})


def stream_of(pickled: bytes, keys: list[str] | None = None, tail: bytes = b'') -> bytes:
    """A PyTorch pickle stream around a pickle."""
    return MAGIC_PICKLE + PROTOCOL_PICKLE + pickle.dumps({}, 2) + pickled + pickle.dumps(keys or [], 2) + tail


def tensor_pickle(
    shape: bytes = b'K\x06\x85',
    strides: bytes = b'K\x01\x85',
    length: bytes = b'K\x06',
    offset: bytes = b'K\x00',
    *,
    legacy: bool = False,
) -> bytes:
    """The pickle of {'a': tensor} of float storage '0', its numbers given as pickle instructions."""
    return (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        + b'X\x01\0\0\x000X\x03\0\0\0cpu' + length + (b'N' if legacy else b'') + b'tQ' + offset + shape + strides
        + b'\x89ccollections\nOrderedDict\n)RtRs.'
    )  # fmt: skip


def safetensors_bytes(header: object, data: bytes = b'', *, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(encoded) if length is None else length) + encoded + data


def described(shape: object, begin: int, end: int, dtype: object = 'F32') -> dict[str, object]:
    return dict(dtype=dtype, shape=shape, data_offsets=[begin, end])


def mxnet_array(shape: tuple[int, ...] = (2,), data: bytes | None = None, **fields: int) -> bytes:
    """One array of MXNet's format; `fields` replace magic, storage, dimensions and flag (the type)."""
    magic = fields.get('magic', 0xF993FAC9)
    storage = b'' if magic == 0xF993FAC8 else struct.pack('<i', fields.get('storage', 0))
    head = struct.pack('<I', magic) + storage + struct.pack('<i', fields.get('dimensions', len(shape)))
    body = bytes(4 * shape[0]) if data is None else data
    return head + struct.pack(f'<{len(shape)}q', *shape) + struct.pack('<iii', 1, 0, fields.get('flag', 0)) + body


def mxnet_bytes(
    arrays: list[bytes], names: list[bytes], *, count: int | None = None, named: int | None = None
) -> bytes:
    return (
        struct.pack('<QQQ', 0x112, 0, len(arrays) if count is None else count)
        + b''.join(arrays)
        + struct.pack('<Q', len(names) if named is None else named)
        + b''.join(struct.pack('<Q', len(name)) + name for name in names)
    )


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, value: bytes | int, *, length: int | None = None) -> bytes:
    """A protobuf field: bytes with their length, or an integer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    return varint(number << 3 | 2) + varint(len(value) if length is None else length) + value


def caffe_blob(shape: tuple[int, ...], data: bytes) -> bytes:
    return field(5, data) + field(7, field(1, b''.join(varint(n % (1 << 64)) for n in shape)))


def caffe_bytes(*blobs: bytes, name: bytes = b'conv') -> bytes:
    return field(1, b'net') + field(100, field(1, name) + b''.join(field(7, blob) for blob in blobs))


def mindspore_value(name: bytes, shape: tuple[int, ...], dtype: bytes, content: bytes) -> bytes:
    tensor = b''.join(field(1, length) for length in shape) + field(2, dtype) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


def valid_files() -> dict[str, bytes]:
    """One file or more of every format, by a name that says which."""
    samples = {path.name: path.read_bytes() for path in sorted(SAMPLES.iterdir()) if path.suffix != '.json'}
    archive, stream = torch_bytes(STATE_DICT), torch_bytes(STATE_DICT, legacy=True)
    return {
        'torch': archive,
        'torch, wrapped': torch_bytes(dict(state_dict={'module.a': torch.ones(3)}, optimizer=dict(lr=[0.1]), epoch=2)),
        'torch-legacy': stream,
        'safetensors': save({key: value.contiguous() for key, value in STATE_DICT.items()}),
        'zip of torch': zip_bytes({'net.pth': archive}, compression=zipfile.ZIP_DEFLATED),
        'zip of mxnet': zip_bytes({'net.params': samples['gluon.params']}, compression=zipfile.ZIP_DEFLATED),
        **samples,
    }
