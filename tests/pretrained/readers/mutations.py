"""Valid files to be mutated: which part is, which bytes are kept, and how a file is made of it again."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_files import MAGIC_PICKLE, PROTOCOL_PICKLE, unzipped, valid_files, zip_bytes

# An edit is (kind, position, length, number); see `mutate`.
Edit = tuple[str, int, int, int]
KINDS = ('flip', 'number', 'cut', 'copy', 'erase', 'insert')
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Subject:
    """What is mutated.

    Attributes:
        part: The bytes that edits apply to.
        kept: How many at the beginning of the part they leave alone: the magic bytes, or what detection needs.
        build: From the part to a file.
    """

    part: bytes
    kept: int
    build: Callable[[bytes], bytes] = bytes


def mutate(part: bytes, kept: int, edits: list[Edit]) -> bytes:
    """Apply edits behind the first `kept` bytes. Positions beyond the end count from the beginning again."""
    head, body = part[:kept], bytearray(part[kept:])
    for kind, position, length, number in edits:
        position %= len(body) or 1
        end = position + length
        if kind == 'flip' and body:
            body[position] ^= 1 + number % 255
        elif kind == 'number':  # a length field, little-endian
            width = 1 << length % 4
            body[position : position + width] = (number % (1 << 8 * width)).to_bytes(width, 'little')
        elif kind == 'cut':
            del body[position:]
        elif kind == 'copy':
            target = number % (len(body) or 1)
            body[target:target] = body[position:end]
        elif kind == 'erase':
            del body[position:end]
        elif kind == 'insert':
            body[position:position] = number.to_bytes(8, 'little')[: 1 + length % 8]
    return head + bytes(body)


def subjects() -> dict[str, Subject]:
    """Every format as a whole, and the parts that checksums and lengths of a container would shield."""
    files = valid_files()
    kept = dict(torch=4, zip=4, params=8, caffemodel=1, ckpt=1, pdparams=2)
    whole = {
        name: Subject(content, kept.get(name.rpartition('.')[2].split()[0].rstrip(','), 0))
        for name, content in files.items()
    }
    stream, tensors = files['torch-legacy'], files['safetensors']
    whole['torch-legacy'] = Subject(stream, len(MAGIC_PICKLE))
    # Detection needs the brace, and zeros in the two highest bytes of the header's length.
    for name in ('safetensors', 'expected.safetensors'):
        whole[name] = Subject(files[name][:6][::-1] + files[name][9:], 0, _with_brace)
    header_end = 8 + struct.unpack('<Q', tensors[:8])[0]
    parts = {
        'torch: its pickle': _pickle_in(files['torch']),
        'torch, wrapped: its pickle': _pickle_in(files['torch, wrapped']),
        'torch-legacy: its pickle': Subject(
            stream[len(MAGIC_PICKLE + PROTOCOL_PICKLE) :], 2, lambda part: MAGIC_PICKLE + PROTOCOL_PICKLE + part
        ),
        'safetensors: its header': Subject(
            tensors[8:header_end], 1, lambda part: struct.pack('<Q', len(part)) + part + tensors[header_end:]
        ),
        'zip: its checkpoint': Subject(files['gluon.params'], 8, lambda part: zip_bytes({'net.params': part})),
    }
    return {**whole, **parts}


def _with_brace(part: bytes) -> bytes:
    return part[:6][::-1].ljust(6, b'\0') + b'\0\0{' + part[6:]


def _pickle_in(archive: bytes) -> Subject:
    entries = unzipped(archive)
    return Subject(entries['archive/data.pkl'], 2, lambda part: zip_bytes({**entries, 'archive/data.pkl': part}))
