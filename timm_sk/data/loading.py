"""Batches of images, whose random numbers follow from a seed and the place in the run.

The augmentation of an image is drawn from the seed, the epoch and the position of the image in it, and from nothing
else. So a resumed run sees the same images, with any number of workers and processes.
"""

import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..distributed import DistributedContext
from .datasets import ImageDataset, ImageStream
from .images import UnreadableSampleError
from .transforms import seed_transforms

Transform = Callable[[Any], Any]  # of what `read_image` returns to 8-bit pixels [C, H, W], of numpy or torch

MAX_SKIPPED = 100  # neighbours that are tried in place of an unreadable image


class Batch(NamedTuple):
    """A batch as it is loaded."""

    images: Tensor  # 8-bit, [B, C, H, W]; empty if none could be read
    targets: Tensor  # labels [B]
    indices: Tensor  # in the data set [B]; -1 in a stream
    bad: list[str]  # names of images that could not be read, with the reasons


class _Place(NamedTuple):
    """An image of an epoch: its position in the order, and its index in the data set."""

    epoch: int
    position: int
    image: int


class _Sample(NamedTuple):
    pixels: Any  # None if it could not be read
    target: int
    image: int
    bad: list[str]


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class TrainBatches(Sampler[list[_Place]]):
    """The batches of one process: a new order of all images in each epoch, distributed over the processes.

    The k-th batches of all processes together are the k-th batch of a single process with the same total batch size.
    Images that do not fill a batch are left out until the next epoch. The batch size is that of one process; it is
    reduced if there are fewer images. `epoch` and its `first` batch are to be set before iterating.
    """

    def __init__(self, count: int, batch_size: int, context: DistributedContext, seed: int) -> None:
        if count < context.size:
            raise ValueError(f'{count} images for {context.size} processes: start fewer processes.')
        self.count = count
        self.batch_size = min(batch_size, count // context.size)
        self.context = context
        self.seed = seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.context.size)

    def __iter__(self) -> Iterator[list[_Place]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for batch in range(self.first, len(self)):
            start = (batch * self.context.size + self.context.rank) * self.batch_size
            positions = range(start, start + self.batch_size)
            yield [_Place(self.epoch, position, order[position]) for position in positions]


class _TrainSamples(Dataset[_Sample]):
    def __init__(self, images: ImageDataset, transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: _Place) -> _Sample:
        bad: list[str] = []
        for skipped in range(min(len(self.images), MAX_SKIPPED)):
            index = (place.image + skipped) % len(self.images)
            try:
                image, target = self.images.read(index)
            except UnreadableSampleError as error:
                bad.append(str(error))
                continue
            seed_transforms(seed_of(self.seed, place.epoch, place.position))
            return _Sample(self.transform(image), target, index, bad)
        return _Sample(None, -1, -1, bad)


class _EvalSamples(Dataset[_Sample]):
    def __init__(self, images: ImageDataset, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> _Sample:
        try:
            image, target = self.images.read(index)
        except UnreadableSampleError as error:
            return _Sample(None, -1, index, [str(error)])
        return _Sample(self.transform(image), target, index, [])


class _StreamSamples(IterableDataset[_Sample]):
    def __init__(self, stream: ImageStream, transform: Transform, seed: tuple[int, int] | None = None) -> None:
        self.stream, self.transform = stream, transform
        self.seed = seed  # the run's and the rank; None without augmentation
        self.epoch = 0

    def __iter__(self) -> Iterator[_Sample]:
        worker = get_worker_info()
        for position, (image, target, bad) in enumerate(self.stream):
            if image is None:
                yield _Sample(None, -1, -1, bad)
                continue
            if self.seed is not None:
                seed_transforms(seed_of(*self.seed, self.epoch, worker.id if worker else 0, position))
            yield _Sample(self.transform(image), target, -1, bad)


@dataclass
class Loader:
    """Batches of one process, by epoch."""

    loader: DataLoader[Any]
    length: int  # number of batches per epoch
    batch_size: int  # of this process; in validation the last batch may be smaller
    batches: TrainBatches | None = None  # of training images with an index
    stream: _StreamSamples | None = None  # of training

    def __len__(self) -> int:
        return self.length

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the batch `first` on."""
        try:
            if self.batches is not None:
                self.batches.epoch, self.batches.first = epoch, first
                yield from self.loader
            elif self.stream is not None:
                seed = seed_of(*(self.stream.seed or ()), epoch)
                self.stream.epoch = epoch
                self.stream.stream.set_epoch(epoch, seed)
                self.loader.generator = torch.Generator().manual_seed(seed)  # seeds the workers
                yield from islice(self.loader, first, self.length)
            else:
                yield from self.loader
        except Exception as error:
            # the error of a worker would keep the workers alive, and this process waiting for them when it ends
            traceback.clear_frames(error.__traceback__)
            raise


def train_loader(
    images: ImageDataset | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    context: DistributedContext,
    seed: int,
    workers: int = 0,
) -> Loader:
    """Training batches, all of one size; order and augmentation follow from the seed.

    Raises:
        ValueError: If there are fewer images than processes, or too few in a stream for its workers.
    """
    settings = _settings(context, workers)
    if isinstance(images, ImageStream):  # no persistent workers: they would keep their first epoch
        samples = _StreamSamples(images, transform, (seed, context.rank))
        loader = DataLoader(samples, batch_size=batch_size, drop_last=True, **settings)
        return Loader(loader, _stream_batches(images, batch_size, context, workers), batch_size, stream=samples)
    batches = TrainBatches(len(images), batch_size, context, seed)
    dataset = _TrainSamples(images, transform, seed)
    loader = DataLoader(dataset, batch_sampler=batches, persistent_workers=workers > 0, **settings)
    return Loader(loader, len(batches), batches.batch_size, batches=batches)


def eval_loader(
    images: ImageDataset | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    context: DistributedContext,
    workers: int = 0,
) -> Loader:
    """Validation batches: every image once in all processes together, without padding.

    The last batch of a process may be smaller, and so are those with unreadable images.
    """
    settings = _settings(context, workers)
    if isinstance(images, ImageStream):
        own = images.share(context)
        length = -(-len(own) // batch_size)  # without workers, each of which may have a smaller last batch
        own.dataset.set_loader_cfg(num_workers=workers)
        loader = DataLoader(_StreamSamples(own, transform), batch_size=batch_size, **settings)
        return Loader(loader, length, batch_size)
    indices = range(context.rank, len(images), context.size)
    loader = DataLoader(_EvalSamples(images, transform), sampler=indices, batch_size=batch_size, **settings)
    return Loader(loader, len(loader), batch_size)


def normalizer(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, *, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """A function from 8-bit images [B, C, H, W] to normalized float32 images on a device, as timm's prefetcher.

    Mean and standard deviation of the channels are of values from 0 to 1.
    """
    centre, scale = (torch.tensor([255 * value for value in values], device=device) for values in (mean, std))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normalize(images: Tensor) -> Tensor:
        moved = images.to(device, non_blocking=True).float().to(memory_format=memory_format)
        return moved.sub_(centre.view(1, -1, 1, 1)).div_(scale.view(1, -1, 1, 1))

    return normalize


def _stream_batches(stream: ImageStream, batch_size: int, context: DistributedContext, workers: int) -> int:
    """Number of full batches of a process per epoch; each worker makes its own, of equally many images."""
    loading = max(workers, 1)
    if stream.shards is not None and len(stream.shards) < context.size * loading:
        raise ValueError(
            f'{len(stream.shards)} shards for {context.size} processes with {loading} workers each: '
            'every worker needs a shard, so use fewer workers.'
        )
    stream.dataset.set_loader_cfg(num_workers=workers)
    per_worker = len(stream) // loading  # timm's length is of this process
    if per_worker < batch_size:
        raise ValueError(
            f'{per_worker} images per worker do not fill a batch of {batch_size}: use fewer workers or a smaller batch.'
        )
    return loading * (per_worker // batch_size)


def _settings(context: DistributedContext, workers: int) -> dict[str, Any]:
    return dict(
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=context.device.type == 'cuda',
        worker_init_fn=_ignore_signals if workers else None,
    )


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a worker: the process that it loads for handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _collate(samples: list[_Sample]) -> Batch:
    read = [sample for sample in samples if sample.pixels is not None]
    images = [torch.as_tensor(sample.pixels) for sample in read]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        targets=torch.tensor([sample.target for sample in read], dtype=torch.int64),
        indices=torch.tensor([sample.image for sample in read], dtype=torch.int64),
        bad=[line for sample in samples for line in sample.bad],
    )
