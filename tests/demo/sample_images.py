"""Valid and hostile images for the tests of the page."""

import struct
import zlib
from pathlib import Path

from PIL import Image

from timm_sk.inference.prediction import example_images

RING = next(path for path in example_images('sknet_atto.shapes') if path.stem == 'ring')
SEVEN = next(path for path in example_images('sknet_atto.digits') if path.stem == '7')


def png(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel: a decompression bomb, for large sizes, in few bytes."""
    line = zlib.compressobj(9)
    row = b'\0' * (1 + (width + 7) // 8)
    data = b''.join(line.compress(row) for _ in range(height)) + line.flush()
    chunks = ((b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)), (b'IDAT', data), (b'IEND', b''))
    body = b''.join(
        struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b'\x89PNG\r\n\x1a\n' + body


def photo(folder: Path, width: int = 640, height: int = 480) -> Path:
    """The ring on a larger canvas, as JPEG."""
    path = folder / 'photo.jpg'
    with Image.open(RING) as ring:
        ring.convert('RGB').resize((width, height)).save(path, quality=95)
    return path
