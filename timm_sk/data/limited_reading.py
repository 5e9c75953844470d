"""Reading untrusted images: in a process of its own, with limits of pixels, memory and time."""

import logging
import multiprocessing
import struct
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..errors import UnreadableImageError
from .images import read_image

_logger = logging.getLogger(__name__)
_HEAD = struct.Struct('<II')  # width and height; zeros before a message
# A server that has imported this module, whose forks start within milliseconds. Its socket is in the folder for
# temporary files, and the path of a socket has about 100 bytes at most.
_has_server = 'forkserver' in multiprocessing.get_all_start_methods() and len(tempfile.gettempdir()) <= 70
_PROCESSES: Any = multiprocessing.get_context('forkserver' if _has_server else 'spawn')
if _has_server:
    _PROCESSES.set_forkserver_preload(['__main__', __name__])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading one image may take."""

    pixels: int  # also of an image inside another, as in an ICO
    aspect: float  # ratio of the longer to the shorter side
    side: int  # in pixels, that a larger image is reduced to
    megabytes: int  # of memory, beyond what an idle process has; where the platform can limit it
    seconds: float
    formats: tuple[str, ...]  # of Pillow


def read_image_limited(path: Path, limits: Limits) -> Image.Image:
    """Read an image as `read_image`, in a child process; a larger one is reduced.

    Raises:
        UnreadableImageError: As `read_image`, or if it exceeds a limit.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    child = _PROCESSES.Process(target=_send_image, args=(path, limits, sender), daemon=True)
    child.start()
    sender.close()
    timer = Timer(limits.seconds, child.kill)
    timer.start()
    try:
        if failure := receiver.recv_bytes().decode():
            _warn_of_memory(failure)
        answer = receiver.recv_bytes(_HEAD.size + 3 * limits.side**2)
    except (EOFError, OSError):  # the child was killed
        answer = b''
    finally:
        timer.cancel()
        child.kill()
        child.join()
        receiver.close()
    if len(answer) < _HEAD.size:
        raise UnreadableImageError(f'{path} {_cost_message(limits)}')
    size, content = _HEAD.unpack_from(answer), answer[_HEAD.size :]
    if size == (0, 0):
        raise UnreadableImageError(content.decode())
    return Image.frombytes('RGB', size, content)


def _send_image(path: Path, limits: Limits, sender: Connection) -> None:
    """Send why memory has no limit, if so; then read an image, and send its pixels or a message."""
    sender.send_bytes(_limit_memory(limits.megabytes << 20).encode())
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    try:
        _check_header(path, limits)
        Image.MAX_IMAGE_PIXELS = limits.pixels // 2  # Pillow warns of more, and refuses twice as many
        image = read_image(path)
        image.thumbnail((limits.side, limits.side))
        answer = _HEAD.pack(*image.size) + image.tobytes()
    except (UnreadableImageError, MemoryError) as error:
        out_of_memory = isinstance(error.__cause__ or error, MemoryError)
        answer = _HEAD.pack(0, 0) + (f'{path} {_cost_message(limits)}' if out_of_memory else str(error)).encode()
    sender.send_bytes(answer)


def _check_header(path: Path, limits: Limits) -> None:
    try:
        with Image.open(path, formats=limits.formats) as image:  # reads the header alone
            width, height = image.size
    except UnidentifiedImageError as error:
        if not path.stat().st_size:
            return  # read_image reports an empty file
        raise UnreadableImageError(f'{path}: not an image that can be read.') from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f'{path} has too many pixels: {_pixels_message(limits)}') from error
    except (OSError, SyntaxError, ValueError):
        return  # read_image reports the error
    if width * height > limits.pixels:
        raise UnreadableImageError(f'{path} has {width} x {height} pixels: {_pixels_message(limits)}')
    if max(width, height) > limits.aspect * min(width, height):
        raise UnreadableImageError(
            f'{path} has {width} x {height} pixels: the aspect ratio may be {limits.aspect:g} at most. Crop it.'
        )


def _pixels_message(limits: Limits) -> str:
    return f'{limits.pixels // 10**6} million at most. Reduce it first.'


def _cost_message(limits: Limits) -> str:
    return f'takes more than {limits.megabytes} MB or {limits.seconds:g} seconds to decode. Reduce it first.'


def _limit_memory(size: int) -> str:
    """Limit the memory of this process to so many bytes more than it has; returns why it failed on Linux."""
    try:
        import resource

        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + size, used + size))
    except (ImportError, OSError, ValueError) as error:
        return str(error) if sys.platform == 'linux' else ''
    return ''


@cache
def _warn_of_memory(failure: str) -> None:
    _logger.warning('The memory for reading images is not limited: %s.', failure)
