"""Pictures from files: finding them, and reading each as 8-bit RGB, whatever it was saved as."""

import glob
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UnreadableImageError

_LEVELS_16_TO_8 = 257  # 65535 / 255
# What is taken for a picture in a folder; a file that is named may have any ending.
PICTURE_ENDINGS = frozenset(
    ['.avif', '.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp']
)
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def find_images(arguments: Iterable[str]) -> Iterator[Path]:
    """Turn files, folders and glob patterns into files.

    Folders are walked for `PICTURE_ENDINGS`, in alphabetical order. What is no file, holds none or matches
    none is passed on as it is, for `read_image` to say what is wrong with it.
    """
    for argument in arguments:
        if os.path.exists(argument) or not glob.has_magic(argument):
            yield from _walk(Path(argument))
        else:
            for match in sorted(glob.glob(argument, recursive=True)) or [argument]:
                yield from _walk(Path(match))


def _walk(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    found = [file for file in path.rglob('*') if file.suffix.lower() in PICTURE_ENDINGS and file.is_file()]
    return sorted(found) or [path]


def read_image(path: Path) -> Image.Image:
    """Read a picture in full, as 8-bit RGB, upright as its EXIF orientation says.

    Transparent parts become white (but for a transparent shade of a 16-bit grey picture), 16-bit greys are scaled to 8
    bits, CMYK and palettes are converted; of an animation the first frame is taken.

    Raises:
        UnreadableImageError: If the file is missing, empty, truncated, too large, or no picture that Pillow reads.
    """
    try:
        if path.is_dir():
            raise UnreadableImageError(f'{path}: a folder without pictures.')
        if path.is_file() and path.stat().st_size == 0:
            raise UnreadableImageError(f'{path}: the file is empty.')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # twice that size is refused
            picture = Image.open(path)
        with picture:
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f'{path}: no such file.') from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f'{path}: not a picture that can be read.') from error
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f'{path}: cannot be decoded: {error}') from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB, as `read_image` says.

    Raises:
        ValueError: If the pixels are floating-point or 32-bit numbers, whose range nothing says.
    """
    if picture.mode == 'F':
        raise ValueError('floating-point pixels have no agreed range; save it with 8 or 16 bits.')
    if picture.mode.startswith('I'):
        greys = np.asarray(picture)
        if greys.min() < 0 or greys.max() > np.iinfo(np.uint16).max:
            raise ValueError('32-bit pixels have no agreed range; save it with 8 or 16 bits.')
        return Image.fromarray(np.round(greys / _LEVELS_16_TO_8).astype(np.uint8)).convert('RGB')
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture).convert('RGB')
    return picture.convert('RGB')


class UnreadableSampleError(ValueError):
    """Raised when one picture of a data set cannot be decoded; names it, and says why."""


def reason(error: Exception) -> str:
    """Why a picture cannot be decoded, the same words each time: Pillow's have the place in memory that it was in."""
    return re.sub(r' at 0x[0-9a-f]+', '', str(error)) or type(error).__name__
