"""timm's transforms, for images of any number of channels."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import timm.data
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.utils import random_seed


def create_transform(input_size: Sequence[int], *, is_training: bool = False, **options: Any) -> Any:
    """A transform of what `read_image` returns to 8-bit pixels [C, H, W].

    Args:
        input_size: Channels, height and width of the input.
        is_training: Augment the images.
        **options: Options of `timm.data.create_transform`.
    """
    is_usual = input_size[0] in (1, 3)
    if not is_usual and 'mean' in options:
        options['mean'] = (fmean(options['mean']),)  # fill colour of AutoAugment
    transform = timm.data.create_transform(input_size, is_training=is_training, use_prefetcher=True, **options)
    return transform if is_usual else _EachChannel(transform, is_training)


class _EachChannel(NamedTuple):
    """Transforms the channels of an image one by one, all with the same random numbers."""

    transform: Any
    is_random: bool

    def __call__(self, channels: Sequence[Image.Image]) -> NDArray[np.uint8]:
        seed = int(torch.randint(2**31, ())) if self.is_random else 0
        transformed = []
        for channel in channels:
            if self.is_random:
                random_seed(seed)
            transformed.append(np.asarray(self.transform(channel)))
        return np.concatenate(transformed)
