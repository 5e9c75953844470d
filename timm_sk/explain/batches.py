"""Batches of images at several scales for `study`, from a data set or drawn."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Batch, ImageDataset, ImageStream, UnreadableSampleError, eval_loader, normalizer, shapes
from ..distributed import DistributedContext
from .zoom import Zoom

Batches = Iterator[tuple[Sequence[Tensor], Tensor]]


def data_batches(
    images: ImageDataset | ImageStream,
    zoom: Zoom,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
    on_bad: Callable[[str], None] | None = None,
) -> Batches:
    """Batches of a data set, in which each image is read once for all scales.

    `on_bad` is called with a line for each image that is skipped, because it is unreadable or smaller than the model's
    input; None to raise. A small image in a stream always raises.

    Yields:
        Images [B, C, H, W] at each scale, and labels [B].

    Raises:
        ValueError: If an image cannot be used.
    """
    if isinstance(images, ImageDataset):
        images = _LargeEnough(images, zoom)
    prepare = normalizer(zoom.mean, zoom.std, device)
    loader = eval_loader(
        images, zoom, batch_size=batch_size, context=DistributedContext(device=device), workers=workers
    )
    for batch in _of_stream(loader.epoch()) if isinstance(images, ImageStream) else loader.epoch():
        for line in batch.bad:
            if on_bad is None:
                raise ValueError(line)
            on_bad(line)
        if len(batch.targets):
            scaled = batch.images.transpose(0, 1)  # [S, B, C, H, W]
            yield [*map(prepare, scaled)], batch.targets


def shape_batches(count: int, zoom: Zoom, *, device: torch.device, batch_size: int = 64) -> Batches:
    """Batches of `timm_sk.shapes`, whose objects are drawn larger, all else equal, and are never cut off.

    At scale 1 an object's extent is `shapes.MIN_SCALE` of the image. Objects lie anywhere, so a crop of the center may
    miss them. Yields as `data_batches`.

    Raises:
        ValueError: If an object would be larger than the image, or the model's input is not square or not RGB.
    """
    height, width = zoom.input_size
    if height != width or len(zoom.mean) != 3:
        raise ValueError(f'Shapes are square RGB images, but the model takes {len(zoom.mean)}x{height}x{width}.')
    extents = [shapes.MIN_SCALE * scale for scale in zoom.scales]
    if max(extents) > 1:
        raise ValueError(
            f'At a scale of {max(zoom.scales):g} a shape would be larger than the image: '
            f'take {1 / shapes.MIN_SCALE:.3g} at most.'
        )
    drawn = [shapes.draw(count, seed=shapes.TEST_SEED, scale=extent, size=height) for extent in extents]
    labels = torch.from_numpy(drawn[0][1])
    prepare = normalizer(zoom.mean, zoom.std, device)
    for first in range(0, count, batch_size):
        rows = slice(first, first + batch_size)
        scaled = [torch.from_numpy(images[rows]).permute(0, 3, 1, 2) for images, _ in drawn]
        yield [*map(prepare, scaled)], labels[rows]


def _of_stream(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, with a worker's error without the stack that torch adds to it."""
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix('ValueError: ')) from error


class _LargeEnough(ImageDataset):
    """The same images, of which those smaller than the model's input are unreadable."""

    def __init__(self, images: ImageDataset, zoom: Zoom) -> None:
        super().__init__(images.dataset, decode=images.decode)
        self.indices, self.zoom = images.indices, zoom

    def read(self, index: int) -> tuple[Any, int]:
        image, label = super().read(index)
        try:
            self.zoom.require_large_enough(image, self.name(index))
        except ValueError as error:
            raise UnreadableSampleError(str(error)) from error
        return image, label
