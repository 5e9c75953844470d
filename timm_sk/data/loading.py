"""Batches of images, of which every random number follows from a seed and a place in the run.

What augments an image is drawn from the seed, the epoch and the image's position in it, and nothing else: so a run
that was stopped goes on with the same images, however many workers or processes load them.
"""

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..distributed import DistributedContext
from .datasets import ImageDataset, ImageStream
from .images import UnreadableSampleError

Transform = Callable[[Image.Image], Any]  # to 8-bit pixels [C, H, W], as an array of numpy or torch

MOST_SKIPPED = 100  # neighbours of an image that cannot be read that are tried in its place


class Batch(NamedTuple):
    """Images as they are loaded.

    Attributes:
        images: [B, C, H, W], 8-bit; all sizes are 0 if none of them could be read.
        targets: Their labels [B].
        indices: Their indices in the data set [B]; -1 in a stream.
        bad: Names of images that could not be read, each with the reason.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    bad: list[str]


class _Place(NamedTuple):
    """One image of an epoch: where it comes in its order, and which one it is."""

    epoch: int
    position: int
    which: int


class _Sample(NamedTuple):
    pixels: Tensor | None
    target: int
    which: int
    bad: list[str]


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits from several numbers of at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, from which augmentation, mixup and dropout draw."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class TrainBatches(Sampler[list[_Place]]):
    """The batches of one process and epoch: a new order of all images in each epoch, shared among the processes.

    The k-th batches of all processes together are the k-th batch of a single process with as many images. What does
    not fill a batch of all is left out until another epoch's order.

    Args:
        count: ImageDataset in the data set.
        batch_size: ImageDataset in a batch of one process; fewer if there are not so many.
        context: The processes.
        seed: Of the orders.
    """

    def __init__(self, count: int, batch_size: int, context: DistributedContext, seed: int) -> None:
        if count < context.size:
            raise ValueError(f'{count} images for {context.size} processes: start fewer processes.')
        self.count = count
        self.batch_size = min(batch_size, count // context.size)
        self.context = context
        self.seed = seed
        self.epoch = self.first = 0

    def begin(self, epoch: int, first: int = 0) -> None:
        """Go to an epoch, and to a batch in it."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.context.size)

    def __iter__(self) -> Iterator[list[_Place]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for batch in range(self.first, len(self)):
            start = (batch * self.context.size + self.context.rank) * self.batch_size
            positions = range(start, start + self.batch_size)
            yield [_Place(self.epoch, position, order[position]) for position in positions]


class _Shard(Sampler[int]):
    """Every so many-th image, so that all processes together have each image once."""

    def __init__(self, count: int, context: DistributedContext, first: int = 0) -> None:
        self.indices = range(first + context.rank, count, context.size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class _TrainSamples(Dataset[_Sample]):
    def __init__(self, images: ImageDataset, transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: _Place) -> _Sample:
        bad: list[str] = []
        for skipped in range(min(len(self.images), MOST_SKIPPED)):
            index = (place.which + skipped) % len(self.images)
            try:
                image, target = self.images.read(index)
            except UnreadableSampleError as error:
                bad.append(str(error))
                continue
            seed_everything(seed_of(self.seed, place.epoch, place.position))
            return _Sample(_pixels(self.transform(image)), target, index, bad)
        return _Sample(None, -1, -1, bad)


class _EvalSamples(Dataset[_Sample]):
    def __init__(self, images: ImageDataset, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> _Sample:
        try:
            image, target = self.images.read(index)
        except UnreadableSampleError as error:
            return _Sample(None, -1, index, [str(error)])
        return _Sample(_pixels(self.transform(image)), target, index, [])


class _StreamSamples(IterableDataset[_Sample]):
    def __init__(self, stream: ImageStream, transform: Transform, seed: tuple[int, int] | None = None) -> None:
        self.stream, self.transform = stream, transform
        self.seed = seed  # the run's and the rank; None where nothing is drawn
        self.epoch = 0

    def begin(self, epoch: int, seed: int) -> None:
        self.epoch = epoch
        self.stream.begin(epoch, seed)

    def __iter__(self) -> Iterator[_Sample]:
        worker = get_worker_info()
        for position, (image, target, bad) in enumerate(self.stream):
            if image is None:
                yield _Sample(None, -1, -1, bad)
                continue
            if self.seed is not None:
                seed_everything(seed_of(*self.seed, self.epoch, worker.id if worker else 0, position))
            yield _Sample(_pixels(self.transform(image)), target, -1, bad)


@dataclass
class Loader:
    """Batches of one process, epoch by epoch.

    Attributes:
        loader: torch's loader.
        length: Batches in an epoch.
        batch_size: ImageDataset in a batch of this process; the last one of an epoch may have fewer in validation.
        batches: The sampler of the batches; None in validation and for a stream.
        stream: What is read, if it is a stream.
    """

    loader: DataLoader[Any]
    length: int
    batch_size: int
    batches: TrainBatches | None = None
    stream: _StreamSamples | None = None

    def __len__(self) -> int:
        return self.length

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from one of them on."""
        try:
            yield from self._batches(epoch, first)
        except Exception as error:
            # an error from a worker holds the workers, who would wait for ever, and this process for them in its end
            traceback.clear_frames(error.__traceback__)
            raise

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        if self.batches is not None:
            self.batches.begin(epoch, first)
            yield from self.loader
        elif self.stream is not None:
            seed = seed_of(*(self.stream.seed or ()), epoch)
            self.stream.begin(epoch, seed)
            self.loader.generator = torch.Generator().manual_seed(seed)  # of which workers get theirs
            yield from islice(self.loader, first, self.length)
        else:
            yield from self.loader


def train_loader(
    images: ImageDataset | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    context: DistributedContext,
    seed: int,
    workers: int = 0,
) -> Loader:
    """Batches to train on, all of one size.

    Args:
        images: The training images.
        transform: What makes 8-bit pixels [C, H, W] of an image, augmented.
        batch_size: ImageDataset in a batch of this process.
        context: The processes.
        seed: Of the order and of what the transform draws.
        workers: Processes that load; 0 to load in this one.

    Raises:
        ValueError: If there are fewer images than processes, or a stream has not enough for each of its workers.
    """
    settings: dict[str, Any] = dict(_settings(context, workers), persistent_workers=workers > 0)
    if isinstance(images, ImageStream):
        samples = _StreamSamples(images, transform, (seed, context.rank))
        settings['persistent_workers'] = False  # workers keep the epoch that they were started with
        loader = DataLoader(samples, batch_size=batch_size, drop_last=True, **settings)
        return Loader(loader, _stream_batches(images, batch_size, context, workers), batch_size, stream=samples)
    batches = TrainBatches(len(images), batch_size, context, seed)
    loader = DataLoader(_TrainSamples(images, transform, seed), batch_sampler=batches, **settings)
    return Loader(loader, len(batches), batches.batch_size, batches=batches)


def eval_loader(
    images: ImageDataset | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    context: DistributedContext,
    workers: int = 0,
    first: int = 0,
) -> Loader:
    """Batches to judge by: every image once in all processes together, also where the count does not divide.

    Args:
        images: The images.
        transform: What makes 8-bit pixels [C, H, W] of an image.
        batch_size: ImageDataset in a batch of this process; the last may have fewer, and images that cannot be read are
            missing from theirs.
        context: The processes.
        workers: Processes that load; 0 to load in this one.
        first: Index of the first image that is wanted.

    Raises:
        ValueError: If a later image of a stream than the first is wanted.
    """
    settings = _settings(context, workers)
    if isinstance(images, ImageStream):
        if first:
            raise ValueError(f'A stream is read from its beginning, got first={first}: open a data set with indices.')
        own = images.share(context)
        length = -(-len(own) // batch_size)  # of one worker; of several, each may have a last batch that is smaller
        own.dataset.set_loader_cfg(num_workers=workers)
        loader = DataLoader(_StreamSamples(own, transform), batch_size=batch_size, **settings)
        return Loader(loader, length, batch_size)
    shard = _Shard(len(images), context, first)
    loader = DataLoader(_EvalSamples(images, transform), sampler=shard, batch_size=batch_size, **settings)
    return Loader(loader, -(-len(shard) // batch_size), batch_size)


def normalizer(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, *, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """What makes float32 images on a device of 8-bit ones, [B, C, H, W], as timm's prefetching loader does.

    Args:
        mean: Of each channel, 0 to 1.
        std: Of each channel, 0 to 1.
        device: Where.
        channels_last: Whether the channels shall lie side by side.
    """
    centre, scale = (torch.tensor([255 * value for value in values], device=device) for values in (mean, std))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normalize(images: Tensor) -> Tensor:
        there = images.to(device, non_blocking=True).float().to(memory_format=memory_format)
        return there.sub_(centre.view(1, -1, 1, 1)).div_(scale.view(1, -1, 1, 1))

    return normalize


def _stream_batches(stream: ImageStream, batch_size: int, context: DistributedContext, workers: int) -> int:
    """Full batches of a process in an epoch: each worker makes its own, of as many images as the others have."""
    loading = max(workers, 1)
    if stream.shards is not None and len(stream.shards) < context.size * loading:
        raise ValueError(
            f'{len(stream.shards)} shards for {context.size} processes with {loading} workers each: '
            'every worker needs a shard, so pass fewer workers.'
        )
    stream.dataset.set_loader_cfg(num_workers=workers)
    of_worker = len(stream) // loading  # timm's length is of this process
    if of_worker < batch_size:
        raise ValueError(
            f'{of_worker} images of each worker fill no batch of {batch_size}: pass fewer workers or a smaller batch.'
        )
    return loading * (of_worker // batch_size)


def _settings(context: DistributedContext, workers: int) -> dict[str, Any]:
    return dict(
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=context.device.type == 'cuda',
        worker_init_fn=_ignore_interrupts if workers else None,
    )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C and requests to end, which may be sent to workers too, to the process that they load for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _pixels(found: Any) -> Tensor:
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _collate(samples: list[_Sample]) -> Batch:
    read = [sample for sample in samples if sample.pixels is not None]
    images = [sample.pixels for sample in read if sample.pixels is not None]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        targets=torch.tensor([sample.target for sample in read], dtype=torch.int64),
        indices=torch.tensor([sample.which for sample in read], dtype=torch.int64),
        bad=[line for sample in samples for line in sample.bad],
    )
