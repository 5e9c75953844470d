"""Zooms into an image as the paper does: its center is cropped, and fills the model's input."""

import math
from collections.abc import Sequence
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_channels
from ..models.inputs import preprocessing

SCALES = (1.0, 1.5, 2.0)  # the paper's
MIN_CROP = 8  # pixels of a crop's shorter side


def zoom_in(image: Image.Image, scale: float) -> Image.Image:
    """Crop the center of an image, 1 / scale of each side, in its own resolution.

    Args:
        image: Image of any mode.
        scale: Zoom factor, at least 1.

    Raises:
        ValueError: If the scale is below 1, or so large that the crop would be less than `MIN_CROP` pixels high or
            wide.
    """
    require_scales([scale])
    width, height = (round(side / scale) for side in image.size)
    if min(width, height) < MIN_CROP:
        largest = min(image.size) / MIN_CROP
        advice = f'take {largest:.3g} at most' if largest >= 1 else f'take images of at least {MIN_CROP} pixels'
        size = f'{width}x{height} of the {image.width}x{image.height} pixels'
        raise ValueError(f'A scale of {scale:g} leaves {size}: {advice}.')
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def require_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Scales as floats; raises ValueError if there is none, one is given twice, or one is below 1 or not finite."""
    found = tuple(float(scale) for scale in scales)
    for scale in found:
        if not (math.isfinite(scale) and scale >= 1):
            raise ValueError(f'Invalid scale {scale:g}: expected at least 1, the whole image.')
    if not found or len(set(found)) < len(found):
        listed = ', '.join(f'{scale:g}' for scale in found) or 'none'
        raise ValueError(f'Invalid scales {listed}: expected at least one, each once.')
    return found


def scale_label(scale: float) -> str:
    """A scale as figures and tables show it."""
    return f'{scale:g}\N{MULTIPLICATION SIGN}'


class Zoom:
    """Turns an image into a model's 8-bit inputs at several scales.

    Args:
        model: Model of timm, whose checkpoint defines resizing and cropping.
        scales: Zoom factors.

    Attributes:
        scales: As given.
        input_size: Height and width of the input in pixels.
        mean: Mean of each channel, for `timm_sk.data.normalizer`.
        std: Standard deviation of each channel.

    Raises:
        ValueError: If a scale is invalid, or the model does not take images of 1 or 3 channels.
    """

    def __init__(self, model: Any, scales: Sequence[float] = SCALES) -> None:
        self.scales = require_scales(scales)
        config = preprocessing(model)
        channels, height, width = config['input_size']
        self.input_size: tuple[int, int] = (height, width)
        self.mean: tuple[float, ...] = config['mean']
        self.std: tuple[float, ...] = config['std']
        self._channels = channels
        self._transform = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)

    def require_large_enough(self, image: Image.Image, name: str) -> None:
        """Check an image's size.

        Raises:
            ValueError: If it is smaller than the input, or too small for the scales; the message begins with the name.
        """
        height, width = self.input_size
        if image.width < width or image.height < height:
            raise ValueError(
                f"{name}: {image.width}x{image.height} pixels are fewer than the model's input of {width}x{height}: "
                'take larger images, or a model with a smaller input.'
            )
        try:
            zoom_in(image, max(self.scales))
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image at each scale, 8-bit [S, C, H, W].

        Raises:
            ValueError: If the image is too small.
        """
        self.require_large_enough(image, 'An image')
        image = to_channels(image, self._channels)
        return torch.stack([torch.as_tensor(self._transform(zoom_in(image, scale))) for scale in self.scales])
