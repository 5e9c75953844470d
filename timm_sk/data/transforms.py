"""timm's transforms, for images of any number of channels."""

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import timm.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import Compose, ConvertImageDtype, InterpolationMode, Normalize, RandomCrop, Resize


def create_transform(
    input_size: Sequence[int], *, is_training: bool = False, crop_padding: int = 0, **options: Any
) -> Any:
    """A transform of what `read_image` returns to 8-bit pixels [C, H, W], with options of `timm.data.create_transform`.

    With `crop_padding` training crops images at random that are scaled to the input size and padded by so many pixels,
    instead of timm's random resized crops.
    """
    is_usual = input_size[0] in (1, 3)
    if not is_usual and 'mean' in options:
        options['mean'] = (fmean(options['mean']),)  # fill colour of AutoAugment
    transform = timm.data.create_transform(input_size, is_training=is_training, use_prefetcher=True, **options)
    if is_training and crop_padding:
        size = tuple(input_size[1:])
        resize = Resize(size, InterpolationMode(options.get('interpolation', 'bilinear')))
        transform = Compose([resize, RandomCrop(size, padding=crop_padding), *transform.transforms[1:]])
    return transform if is_usual else _EachChannel(transform, is_training)


def input_transform(input_size: Sequence[int], *, mean: Sequence[float], std: Sequence[float], **options: Any) -> Any:
    """A transform of what `read_image` returns to a normalized input of a model, float32 [C, H, W].

    Mean and standard deviation of the channels are of values from 0 to 1; the options are those of `create_transform`.
    """
    to_pixels = create_transform(input_size, mean=mean, std=std, **options)
    return Compose([to_pixels, torch.as_tensor, ConvertImageDtype(torch.float32), Normalize(mean, std)])


def seed_transforms(seed: int) -> None:
    """Seed the generators that transforms draw from, those of the CPU.

    `torch.manual_seed` would seed the other devices' too, which on a torch with CUDA that is not in use takes longer
    than the transforms of a small image.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class _EachChannel(NamedTuple):
    """Transforms the channels of an image one by one, all with the same random numbers."""

    transform: Any
    is_random: bool

    def __call__(self, channels: Sequence[Image.Image]) -> NDArray[np.uint8]:
        seed = int(torch.randint(2**31, ())) if self.is_random else 0
        transformed = []
        for channel in channels:
            if self.is_random:
                seed_transforms(seed)
            transformed.append(np.asarray(self.transform(channel)))
        return np.concatenate(transformed)
