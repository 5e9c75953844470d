"""Zip archives that lie: name to bytes and reason of refusal."""

import io
import struct
import zipfile
import zlib

import torch
from checkpoint_files import archive_of, mxnet_array, mxnet_bytes, tensor_pickle, torch_bytes, zip_bytes


def _resized(archive: bytes, size: int) -> bytes:
    """A zip of one entry whose directory says another size."""
    start = archive.index(b'PK\x01\x02')
    return archive[: start + 24] + struct.pack('<I', size) + archive[start + 28 :]


def zip_lies() -> dict[str, tuple[bytes, str]]:
    inner = mxnet_bytes([mxnet_array()], [b'a'])
    plain = zip_bytes({'net.params': inner})
    start = plain.index(b'PK\x01\x02')
    bomb = zip_bytes({'net.params': inner + bytes(256 << 20)}, compression=zipfile.ZIP_DEFLATED)
    genuine = torch_bytes({'a': torch.ones(1000), 'b': torch.ones(1000)})
    locator = genuine.index(b'PK\x06\x07')
    encrypted = bytearray(plain)
    encrypted[6] |= 1
    encrypted[start + 8] |= 1
    lzma = zip_bytes({'net.params': inner}, compression=zipfile.ZIP_LZMA)
    directory = b'PK\x01\x02' + bytes(42)
    entries = 5 << 20
    huge = b'PK\x03\x04' + directory * (entries // 46)
    return {
        'a zip bomb': (bomb, 'would have 2684.* bytes; the limit is'),
        'a zip bomb that says it is small': (_resized(bomb, len(inner)), 'damaged .Bad CRC|lacks'),
        'a zip that says 4 GB': (_resized(plain, (1 << 32) - 2), 'would have 4294967294 bytes'),
        'a zip that says more': (_resized(plain, len(inner) + 9), 'damaged|lacks'),
        'a zip of two': (
            zip_bytes({'a.params': inner, 'b.params': inner}),
            r"a zip of 2 files \('a.params', 'b.params'\)",
        ),
        'a zip of nothing': (zip_bytes({}), 'a zip of 0 files'),
        'a zip in a zip': (zip_bytes({'net.zip': plain}), 'a zip in a zip'),
        'an encrypted zip': (bytes(encrypted), 'is encrypted'),
        'a zip of LZMA': (lzma, 'compressed by method 14'),
        'a damaged zip': (plain.replace(inner[:8], inner[:7] + b'!'), 'damaged .Bad CRC'),
        'a zip cut off': (plain[:-1], 'does not end with a zip directory'),
        'a zip with a tail': (plain + b'tail', 'does not end with a zip directory'),
        'a zip with its directory elsewhere': (plain[:start] + b'gap' + plain[start:], 'not where its end says'),
        'a zip with another local name': (plain.replace(b'net', b'not', 1), 'differ'),
        'a zip with a directory of 5 MB': (
            huge + b'PK\x05\x06' + struct.pack('<4H2LH', 0, 0, 1, 1, len(huge) - 4, 4, 0),
            'its zip directory has 52',
        ),
        'an archive with a flipped byte': (genuine.replace(struct.pack('<f', 1), struct.pack('<f', 2), 1), 'Bad CRC'),
        'two entries of one name': (zip_bytes({'a/data.pkl': b'', 'A/DATA.PKL': b''}), 'have the same name'),
        'two directories': (
            genuine[: locator + 8] + struct.pack('<Q', 0) + genuine[locator + 16 :],
            'two ends of its zip directory disagree',
        ),
        'a second directory before the beginning': (
            b'PK\x03\x04PK\x06\x07' + bytes(16) + b'PK\x05\x06' + bytes(18),
            'two ends of its zip directory disagree',
        ),
        'entries that overlap': (_overlapping(), 'overlap|bytes'),
        'a zip of one byte': (b'PK\x03\x04', 'cut off'),
    }


def _overlapping() -> bytes:
    """A PyTorch archive of 200 entries that are all the same 64 KiB."""
    pickled = archive_of(tensor_pickle(length=b'J\0\x40\0\0'), {'0': bytes(1 << 16)})
    start = pickled.index(b'PK\x01\x02')
    with zipfile.ZipFile(io.BytesIO(pickled)) as archive:
        target = archive.getinfo('archive/data/0')
    crc = zlib.crc32(bytes(1 << 16))
    end = pickled.rindex(b'PK\x05\x06')
    more = b''.join(
        b'PK\x01\x02'
        + struct.pack('<6H3L5H2L', 20, 20, *[0] * 4, crc, *[1 << 16] * 2, len(name), *[0] * 5, target.header_offset)
        + name
        for name in (f'archive/data/{index}'.encode() for index in range(1, 201))
    )  # fmt: skip
    length = end - start + len(more)
    return pickled[:end] + more + b'PK\x05\x06' + struct.pack('<4H2LH', 0, 0, 204, 204, length, start, 0)
