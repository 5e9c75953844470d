"""Pictures at several scales, batch by batch, for `study`: from a data set, or drawn."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..data import Batch, ImageDataset, ImageStream, UnreadableSampleError, eval_loader, normalizer, shapes
from ..distributed import DistributedContext
from .zoom import Enlarging

Batches = Iterator[tuple[Sequence[Tensor], Tensor]]


def data_batches(
    pictures: ImageDataset | ImageStream,
    enlarging: Enlarging,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    workers: int = 2,
    on_bad: Callable[[str], None] | None = None,
) -> Batches:
    """Batches of a data set, each picture read once for all scales.

    Args:
        pictures: By `timm_sk.data.open_dataset`.
        enlarging: Of the model.
        device: The model's.
        dtype: The model's.
        batch_size: ImageDataset in a batch.
        workers: Processes that load; 0 to load in this one.
        on_bad: Called with a line for each picture that cannot be read or is smaller than the model's input, which is
            then left out; if not given, it raises. In a stream a picture that is too small always does.

    Yields:
        Pictures [B, C, H, W] at each scale, and labels [B].

    Raises:
        ValueError: If a picture cannot be used.
    """
    if isinstance(pictures, ImageDataset):
        pictures = _LargeEnough(pictures, enlarging)
    prepare = normalizer(enlarging.mean, enlarging.std, device)
    loader = eval_loader(
        pictures, enlarging, batch_size=batch_size, context=DistributedContext(device=device), workers=workers
    )
    for batch in _of_stream(loader.epoch()) if isinstance(pictures, ImageStream) else loader.epoch():
        for line in batch.bad:
            if on_bad is None:
                raise ValueError(line)
            on_bad(line)
        if len(batch.targets):
            images = batch.images.transpose(0, 1)  # [S, B, C, H, W]
            yield [prepare(at_scale).to(dtype) for at_scale in images], batch.targets


def shape_batches(
    count: int,
    enlarging: Enlarging,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    seed: int = shapes.TEST_SEED,
) -> Batches:
    """Batches of `timm_sk.shapes`, whose objects are drawn larger, all else equal, and are never cut off.

    At scale 1 an object's extent is `shapes.MIN_SCALE` of the frame. Its place is any, so that the middle of the
    picture, which is what a crop would leave, may miss it.

    Args:
        count: ImageDataset.
        enlarging: Of the model; its scales are those of the objects.
        device: The model's.
        dtype: The model's.
        batch_size: ImageDataset in a batch.
        seed: Of the drawing.

    Yields:
        Pictures [B, 3, H, W] at each scale, and labels [B].

    Raises:
        ValueError: If an object would be larger than the frame, or the model's input is not square or not of colours.
    """
    height, width = enlarging.input_size
    if height != width or len(enlarging.mean) != 3:
        raise ValueError(f'Shapes are drawn as squares in RGB; the model takes {len(enlarging.mean)}x{height}x{width}.')
    extents = [shapes.MIN_SCALE * scale for scale in enlarging.scales]
    if max(extents) > 1:
        raise ValueError(
            f'At a scale of {max(enlarging.scales):g} a shape would be larger than the picture: '
            f'take {1 / shapes.MIN_SCALE:.3g} at most.'
        )
    drawn = [shapes.draw(count, seed=seed, scale=extent, size=height) for extent in extents]
    labels = torch.from_numpy(drawn[0][1])
    prepare = normalizer(enlarging.mean, enlarging.std, device)
    for first in range(0, count, batch_size):
        rows = slice(first, first + batch_size)
        pixels = [torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2) for pictures, _ in drawn]
        yield [prepare(at_scale).to(dtype) for at_scale in pixels], labels[rows]


def _of_stream(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, with a worker's error as it was before torch added the worker's stack to it."""
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix('ValueError: ')) from error


class _LargeEnough(ImageDataset):
    """The same pictures, of which one that is smaller than the model's input counts as unreadable."""

    def __init__(self, pictures: ImageDataset, enlarging: Enlarging) -> None:
        super().__init__(pictures.dataset, indices=pictures.indices, mode=pictures.mode)
        self.enlarging = enlarging

    def read(self, index: int) -> tuple[Image.Image, int]:
        picture, label = super().read(index)
        try:
            self.enlarging.require_large_enough(picture, self.name(index))
        except ValueError as error:
            raise UnreadableSampleError(str(error)) from error
        return picture, label
