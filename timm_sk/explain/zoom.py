"""The object enlarged, as the paper does it: the middle of a picture, which then fills the model's input."""

import math
from collections.abc import Sequence
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_rgb
from ..models.inputs import preprocessing

SCALES = (1.0, 1.5, 2.0)  # the paper's
LEAST_CROP = 8  # pixels of a crop's shorter side


def enlarge(picture: Image.Image, scale: float) -> Image.Image:
    """Crop the middle of a picture, 1 / scale of each side, so that what it shows gets `scale` times as large.

    The crop has the picture's own resolution; what prepares pictures for the model resizes it.

    Args:
        picture: Of any mode.
        scale: 1 for the whole picture, or more.

    Raises:
        ValueError: If the scale is below 1, where the crop would reach past the picture, or so large that it would be
            less than `LEAST_CROP` pixels high or wide.
    """
    require_scales([scale])
    width, height = (round(side / scale) for side in picture.size)
    if min(width, height) < LEAST_CROP:
        most = min(picture.size) / LEAST_CROP
        raise ValueError(
            f'A scale of {scale:g} leaves {width}x{height} of the {picture.width}x{picture.height} pixels: '
            + (f'take {most:.3g} at most.' if most >= 1 else f'take pictures of {LEAST_CROP} pixels or more.')
        )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def require_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Check scales and give them as numbers.

    Raises:
        ValueError: If there is none, one comes twice, or one is below 1 or not finite.
    """
    found = tuple(float(scale) for scale in scales)
    for scale in found:
        if not (math.isfinite(scale) and scale >= 1):
            raise ValueError(
                f'A scale is 1, for the whole picture, or more, got {scale:g}: smaller ones reach past the picture.'
            )
    if not found or len(set(found)) < len(found):
        raise ValueError(f'Name at least one scale, each once, got {", ".join(f"{s:g}" for s in found) or "none"}.')
    return found


def times(scale: float) -> str:
    """A scale as figures and tables write it."""
    return f'{scale:g}\N{MULTIPLICATION SIGN}'


class Enlarging:
    """Makes a model's 8-bit input of a picture, at several scales.

    Args:
        model: A model of timm, whose checkpoint says how pictures are resized and cropped.
        scales: How much larger the object shall be.

    Attributes:
        scales: As given.
        input_size: Height and width of the input in pixels.
        mean: By which `timm_sk.data.normalizer` makes the input of it, for each channel.
        std: The same.

    Raises:
        ValueError: If a scale is none, or the model takes pictures of neither 1 nor 3 channels.
    """

    def __init__(self, model: Any, scales: Sequence[float] = SCALES) -> None:
        self.scales = require_scales(scales)
        config = preprocessing(model)
        channels, height, width = config['input_size']
        self.input_size: tuple[int, int] = (height, width)
        self.mean: tuple[float, ...] = config['mean']
        self.std: tuple[float, ...] = config['std']
        self._mode = 'L' if channels == 1 else 'RGB'
        self._transform = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)

    def require_large_enough(self, picture: Image.Image, name: str) -> None:
        """Check a picture's size.

        Raises:
            ValueError: If it is smaller than the input, so that there is no detail to enlarge, or too small for the
                scales; the message begins with the name.
        """
        height, width = self.input_size
        if picture.width < width or picture.height < height:
            raise ValueError(
                f"{name}: {picture.width}x{picture.height} pixels are fewer than the model's input of "
                f'{width}x{height}: take larger pictures, or a model of a smaller input.'
            )
        try:
            enlarge(picture, max(self.scales))
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error

    def __call__(self, picture: Image.Image) -> Tensor:
        """Give the picture at each scale, 8-bit [S, C, H, W].

        Raises:
            ValueError: As `require_large_enough`.
        """
        self.require_large_enough(picture, 'A picture')
        picture = to_rgb(picture).convert(self._mode)
        return torch.stack([torch.as_tensor(self._transform(enlarge(picture, scale))) for scale in self.scales])
