"""Pictures that cannot be decoded: what decoding raises, and how it is said."""

import re
import struct
import zlib

from PIL import Image

DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UnreadableSampleError(ValueError):
    """Raised when one picture of a data set cannot be decoded; names it, and says why."""


def reason(error: Exception) -> str:
    """Why a picture cannot be decoded, the same words each time: Pillow's have the place in memory that it was in."""
    return re.sub(r' at 0x[0-9a-f]+', '', str(error)) or type(error).__name__
