"""Image files: finding and reading them."""

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
# Endings of images in folders; a file that is named may have any ending.
IMAGE_ENDINGS = frozenset(
    ['.avif', '.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp']
)
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def find_images(arguments: Iterable[str]) -> Iterator[Path]:
    """Find the files of paths, folders and glob patterns.

    Folders are searched for `IMAGE_ENDINGS`, in alphabetical order. An argument without files is passed on, for
    `read_image` to raise an error.
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
    found = [file for file in path.rglob('*') if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()]
    return sorted(found) or [path]


def read_image(path: Path) -> Image.Image:
    """Read an image completely, as 8-bit RGB, upright by its EXIF orientation.

    Transparent parts become white (except a transparent shade of a 16-bit grey image), 16-bit greys are scaled to 8
    bits, CMYK and palettes are converted; an animation gives its first frame.

    Raises:
        UnreadableImageError: If the file is missing, empty, truncated, too large, or not an image that Pillow reads.
    """
    try:
        if path.is_dir():
            raise UnreadableImageError(f'{path}: a folder without images.')
        if path.is_file() and path.stat().st_size == 0:
            raise UnreadableImageError(f'{path}: the file is empty.')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # twice the size is an error
            image = Image.open(path)
        with image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f'{path}: no such file.') from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f'{path}: not an image that can be read.') from error
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f'{path}: cannot be decoded: {error}') from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, as `read_image`.

    Raises:
        ValueError: If the pixels are floating-point or 32-bit numbers, whose range is unknown.
    """
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no fixed range: save it with 8 or 16 bits.')
    if image.mode.startswith('I'):
        greys = np.asarray(image)
        if greys.min() < 0 or greys.max() > np.iinfo(np.uint16).max:
            raise ValueError('32-bit pixels have no fixed range: save it with 8 or 16 bits.')
        return Image.fromarray(np.round(greys / _LEVELS_16_TO_8).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


class UnreadableSampleError(ValueError):
    """Raised when an image of a data set cannot be decoded; names it and the reason."""


def reason(error: Exception) -> str:
    """Why an image cannot be decoded; without the memory addresses of Pillow's messages."""
    return re.sub(r' at 0x[0-9a-f]+', '', str(error)) or type(error).__name__


def require_few_bad(bad: list[str], limit: int | None) -> None:
    """Check the number of images that could not be read.

    Args:
        bad: Their names, with the reasons.
        limit: Maximum number; None for no limit.

    Raises:
        ValueError: If there are more.
    """
    if limit is not None and len(bad) > limit:
        raise ValueError(
            f'{len(bad)} image{"s" * (len(bad) != 1)} cannot be read, --max-bad-images allows {limit}: {few(bad)}. '
            'Fix or remove them, or raise the limit.'
        )


def few(lines: list[str]) -> str:
    """The first three lines, and how many more there are."""
    return '; '.join(lines[:3]) + (f' and {len(lines) - 3} more' if len(lines) > 3 else '')
