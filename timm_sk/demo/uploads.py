"""Pictures that strangers upload: refused by their header where decoding would cost too much, else read and kept."""

from functools import lru_cache
from pathlib import Path
from threading import Lock

from PIL import Image, UnidentifiedImageError

from ..data.images import read_image
from ..errors import UnreadableImageError

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_ASPECT = 16  # preprocessing resizes the shorter side, and the longer one grows with it
KEPT_SIDE = 2048
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'ICO', 'PPM')  # no programs, as EPS is

_decoding = Lock()  # one at a time: a picture of MAX_PIXELS takes 150 MB, and some copies of it


def read_upload(path: Path) -> Image.Image:
    """Read an uploaded picture as 8-bit RGB, reduced to `KEPT_SIDE` pixels at most; the last ones are kept.

    Raises:
        UnreadableImageError: If it is missing, no picture, has too many pixels, or is too long; names the file without
            its folder.
    """
    try:
        return _read(path)
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).replace(str(path), path.name)) from error


@lru_cache(maxsize=16)
def _read(path: Path) -> Image.Image:
    _require_moderate(path)
    with _decoding:
        picture = read_image(path)
    picture.thumbnail((KEPT_SIDE, KEPT_SIDE))
    return picture


def _require_moderate(path: Path) -> None:
    try:
        with Image.open(path, formats=FORMATS) as picture:  # reads the header alone
            width, height = picture.size
    except UnidentifiedImageError as error:
        if not path.stat().st_size:
            return  # read_image says so
        raise UnreadableImageError(f'{path}: not a picture that can be read.') from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f'{path} has too many pixels: {MAX_PIXELS // 10**6} million at most.') from error
    except (OSError, SyntaxError, ValueError):
        return  # read_image says what is wrong
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f'{path} has {width} x {height} pixels: {MAX_PIXELS // 10**6} million at most. Reduce it first.'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImageError(
            f'{path} has {width} x {height} pixels: one side may be {MAX_ASPECT} times as long as the other. Crop it.'
        )
