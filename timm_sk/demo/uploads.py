"""Uploaded images: read in child processes with limits, and cached."""

from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore

from PIL import Image

from ..data.limited_reading import Limits, read_image_limited
from ..errors import UnreadableImageError

MAX_BYTES = 20_000_000
LIMITS = Limits(
    pixels=50_000_000,
    aspect=16,  # preprocessing resizes the shorter side, and the longer one grows with it
    side=2048,
    megabytes=768,
    seconds=10,
    formats=('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'ICO', 'PPM'),  # no programs, as EPS is
)

MAX_DECODED = 3  # images at a time; the page decodes one of a visitor at a time
_processes = BoundedSemaphore(MAX_DECODED)


def read_upload(path: Path) -> Image.Image:
    """Read an uploaded image as 8-bit RGB, reduced to `LIMITS.side` pixels; the last ones are cached.

    Raises:
        UnreadableImageError: If it is missing, not an image, or exceeds a limit; names the file without its folder.
    """
    try:
        return _read(path)
    except UnreadableImageError as error:
        text = str(error).replace(str(path), path.name)
        if not text.endswith(('Reduce it first.', 'Crop it.')):
            text += ' Upload another file, such as a PNG or JPEG.'
        raise UnreadableImageError(text) from error


@lru_cache(maxsize=16)
def _read(path: Path) -> Image.Image:
    with _processes:
        return read_image_limited(path, LIMITS)
