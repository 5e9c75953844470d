"""Uploaded images: refused by their header if decoding would cost too much, else read and cached."""

from functools import lru_cache
from pathlib import Path
from threading import Lock

from PIL import Image, UnidentifiedImageError

from ..data.images import read_image
from ..errors import UnreadableImageError

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_ASPECT = 16  # preprocessing resizes the shorter side, and the longer one grows with it
MAX_SIDE = 2048
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'ICO', 'PPM')  # no programs, as EPS is

_decoding = Lock()  # one at a time: an image of MAX_PIXELS takes 150 MB, and some copies of it


def read_upload(path: Path) -> Image.Image:
    """Read an uploaded image as 8-bit RGB, reduced to `MAX_SIDE` pixels; the last ones are cached.

    Raises:
        UnreadableImageError: If it is missing, not an image, has too many pixels, or too large an aspect ratio; names
            the file without its folder.
    """
    try:
        return _read(path)
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).replace(str(path), path.name)) from error


@lru_cache(maxsize=16)
def _read(path: Path) -> Image.Image:
    _check_header(path)
    with _decoding:
        image = read_image(path)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _check_header(path: Path) -> None:
    most = f'{MAX_PIXELS // 10**6} million at most. Reduce it first.'
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads the header alone
            width, height = image.size
    except UnidentifiedImageError as error:
        if not path.stat().st_size:
            return  # read_image reports an empty file
        raise UnreadableImageError(f'{path}: not an image that can be read.') from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f'{path} has too many pixels: {most}') from error
    except (OSError, SyntaxError, ValueError):
        return  # read_image reports the error
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f'{path} has {width} x {height} pixels: {most}')
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImageError(
            f'{path} has {width} x {height} pixels: the aspect ratio may be {MAX_ASPECT} at most. Crop it.'
        )
