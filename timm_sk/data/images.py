"""Image files: finding and reading them, in one way for training, validation, prediction and the page."""

import glob
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UnreadableImageError
from ..optional_packages import require_package

_logger = logging.getLogger(__name__)
_LEVELS_16_TO_8 = 257  # 65535 / 255
# Endings of images in folders and shards, in the order in which a shard's sample is searched for them; a file that is
# named may have any ending.
IMAGE_ENDINGS = (
    *('.jpg', '.png', '.webp', '.jpeg', '.jfif', '.avif', '.bmp', '.gif'),
    *('.pbm', '.pgm', '.ppm', '.tif', '.tiff', '.npy'),
)
_TIFF_HEADS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def find_images(arguments: Iterable[str]) -> Iterator[Path]:
    """Find the files of paths, folders and glob patterns.

    Folders are searched for `IMAGE_ENDINGS`, in alphabetical order; hidden files are left out. An argument without
    files is passed on, for `read_image` to raise an error.
    """
    for argument in arguments:
        if os.path.exists(argument) or not glob.has_magic(argument):
            yield from _images_of(Path(argument))
        else:
            for match in sorted(glob.glob(argument, recursive=True)) or [argument]:
                yield from _images_of(Path(match))


def _images_of(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    names = [*walk(path)]
    log_left_out(path, [name for name in names if not is_image(name)], 'not images')
    return sorted(path / name for name in names if is_image(name)) or [path]


def walk(folder: Path) -> Iterator[str]:
    """The names of all files in a folder, relative to it, except hidden ones and those in hidden folders.

    Links to folders are followed, except to those that they are in.

    Raises:
        OSError: If a folder in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name) and not repeats(Path(at, name), folder)]
        prefix = '' if at == str(folder) else f'{os.path.relpath(at, folder)}/'.replace(os.sep, '/')
        yield from (prefix + name for name in files if not is_hidden(name))


def repeats(path: Path, root: Path) -> bool:
    """Whether a path below a root is a link to a folder that it is in."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    return any(parent.resolve().is_relative_to(target) for parent in path.parents if parent.is_relative_to(root))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or macOS's companion of another."""
    return name.startswith('.') or name == '__MACOSX'


def is_image(name: str) -> bool:
    """Whether a file's name has one of `IMAGE_ENDINGS`."""
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def log_left_out(root: Path, names: list[str], why: str, *, kind: str = 'file') -> None:
    """Log how many files of a folder are left out, why, and the first names; under torchrun in the main process."""
    if names and os.environ.get('RANK', '0') == '0':
        count = f'{len(names)} {kind}{"s" * (len(names) != 1)}'
        first = few([printable(name) for name in sorted(names)])
        _logger.warning('%s: %s left out (%s): %s', root, count, why, first)


def printable(name: str) -> str:
    """A file's name, in which bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def read_image(path: Path, channels: int = 3) -> Any:
    """Read an image completely, with 8 bits, upright by its EXIF orientation.

    Transparent parts become white (except a transparent shade of a 16-bit grey image), 16-bit greys are scaled to 8
    bits, CMYK and palettes are converted; an animation gives its first frame.

    Args:
        path: File that Pillow reads, or an array [H, W] or [H, W, C] of 8 or 16 bits as `.npy`.
        channels: Number of channels: 3 for RGB, 1 for grey, another one for the channels as they are in the file.

    Returns:
        A Pillow image for 1 or 3 channels; a tuple of a grey image per channel for other numbers.

    Raises:
        UnreadableImageError: If the file is missing, empty, truncated, too large, or not an image that can be read.
    """
    if path.is_dir():
        raise UnreadableImageError(f'{path}: a folder without images.')
    try:
        with path.open('rb') as file:
            return decode_image(file, channels)
    except Exception as error:  # decoders raise many kinds on damaged files
        raise UnreadableImageError(f'{path}: {reason(error)}.') from error


def decode_image(file: BinaryIO, channels: int = 3) -> Any:
    """Decode an open file, as `read_image`.

    Raises:
        Exception: Of any kind, which `reason` puts into words.
    """
    head = file.read(6)
    file.seek(0)
    if not head:
        raise UnreadableImageError('the file is empty')
    if head == np.lib.format.MAGIC_PREFIX:
        return _from_array(np.load(file, allow_pickle=False), channels)
    if channels not in (1, 3) and head[:4] in _TIFF_HEADS:
        require_package('tifffile', 'data')
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            return _from_array(tiff.asarray(), channels, tiff.pages[0].tags.valueof('Orientation', default=1))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # twice the size is an error
        image = Image.open(file)
    with image:
        image.load()
        return to_channels(image, channels)


def to_channels(image: Image.Image, channels: int) -> Any:
    """Convert an image to 8 bits and a number of channels, as `read_image`.

    Raises:
        ValueError: If its pixels have no fixed range, or it has too few or too many channels.
    """
    if channels in (1, 3):
        rgb = to_rgb(image)
        return rgb if channels == 3 else rgb.convert('L')
    return _from_array(np.asarray(_upright(image)), channels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, upright, as `read_image`.

    Raises:
        ValueError: If the pixels are floating-point or 32-bit numbers, whose range is unknown.
    """
    image = _upright(image)
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no fixed range: save it with 8 or 16 bits.')
    if image.mode.startswith('I'):
        greys = np.asarray(image)
        if greys.min() < 0 or greys.max() > np.iinfo(np.uint16).max:
            raise ValueError('32-bit pixels have no fixed range: save it with 8 or 16 bits.')
        return Image.fromarray(_to_8_bits(greys)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def blank_image(channels: int) -> Any:
    """A black image, as `read_image` returns it."""
    return _from_array(np.zeros((64, 64, channels), np.uint8), channels)


def _upright(image: Image.Image) -> Image.Image:
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if is_turned else image


def _to_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(pixels / _LEVELS_16_TO_8).astype(np.uint8)


def _from_array(array: NDArray[Any], channels: int, orientation: int = 1) -> Any:
    """The image of an array [H, W], [H, W, C] or [C, H, W] with EXIF's orientation, as `read_image` returns it."""
    wanted = 3 if channels == 1 else channels
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim == 3:
        first, _, last = pixels.shape
        if first == wanted != last or (first == 1 and last not in (1, wanted)):
            pixels = np.moveaxis(pixels, 0, 2)
    if wanted == 3 and pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != wanted or not pixels.size:
        raise ValueError(f'its shape is {list(array.shape)}, the model takes [height, width, {channels}].')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'{pixels.dtype} pixels have no fixed range: save it with 8 or 16 bits without sign.')
    pixels = pixels if pixels.dtype == np.uint8 else _to_8_bits(pixels)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]
    for band in bands:
        band.getexif()[ExifTags.Base.Orientation] = orientation
    upright = tuple(map(_upright, bands))
    return to_channels(Image.merge('RGB', upright), channels) if wanted == 3 else upright


class UnreadableSampleError(ValueError):
    """Raised when an image of a data set cannot be decoded; names it and the reason."""


def reason(error: Exception) -> str:
    """Why an image cannot be read; without the memory addresses of Pillow's messages."""
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, UnidentifiedImageError):
        return 'not an image that can be read'
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return f'cannot be decoded: {re.sub(r" at 0x[0-9a-f]+", "", text).rstrip(".")}'


def require_few_bad(bad: list[str], limit: int | None) -> None:
    """Raise ValueError if more images than the limit could not be read; `bad` has their names, with the reasons."""
    if limit is not None and len(bad) > limit:
        raise ValueError(
            f'{len(bad)} image{"s" * (len(bad) != 1)} cannot be read, --max-bad-images allows {limit}: {few(bad)}. '
            'Fix or remove them, or raise the limit.'
        )


def few(lines: Sequence[str], count: int = 3, separator: str = '; ') -> str:
    """The first lines or names, and how many more there are."""
    return separator.join(lines[:count]) + (f' and {len(lines) - count} more' if len(lines) > count else '')
