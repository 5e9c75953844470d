"""Data sets of labelled images, opened by `timm.data.create_dataset` and read one image at a time.

timm replaces an image that cannot be decoded by its neighbour. Here reading raises, and the loader decides: in training
a neighbour is used instead, in validation the image is left out, and both are counted.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import timm.data
from PIL import Image
from timm.data import IterableImageDataset

from ..distributed import DistributedContext
from . import shapes
from .images import DECODING_ERRORS, UnreadableSampleError, reason
from .shards import record_bad_images

MAP_PREFIXES = ('torch', 'hfds')
STREAM_PREFIXES = ('wds', 'hfids', 'tfds')


class ImageDataset:
    """Labelled images by index.

    Args:
        dataset: Data set with an index, as `timm.data.create_dataset` gives it.
        indices: Indices of its images; None for all.
        mode: Pillow's mode of the images, 'RGB' or 'L'.
    """

    def __init__(self, dataset: Any, *, indices: Sequence[int] | None = None, mode: str = 'RGB') -> None:
        self.dataset = dataset
        self.reader = getattr(dataset, 'reader', None)  # timm's; data sets of torchvision have none
        self.indices = range(len(dataset)) if indices is None else indices
        self.mode = mode

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def total(self) -> int:
        """Number of images in all processes together."""
        return len(self)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode an image completely; returns it and its label.

        Raises:
            UnreadableSampleError: If it cannot be read or decoded.
        """
        inner = self.indices[index]
        try:
            if self.reader is None:
                image, label = self.dataset[inner]
                return image.convert(self.mode), int(label)
            file, label = self.reader[inner]
            with file, Image.open(file) as image:
                return image.convert(self.mode), -1 if label is None else int(label)
        except DECODING_ERRORS as error:
            raise UnreadableSampleError(f'{self.name(index)}: {reason(error)}') from error

    def name(self, index: int) -> str:
        """The file of an image inside the data set, or its number if it has no file."""
        inner = self.indices[index]
        if self.reader is not None:
            name = self.reader.filename(inner, absolute=True)
        else:  # folders of torchvision
            name = self.dataset.samples[inner][0] if hasattr(self.dataset, 'samples') else None
        return str(name) if name else f'image {inner}'

    def targets(self) -> list[int]:
        """The labels of all images, read without decoding any.

        Raises:
            ValueError: If the data set does not give them without its images.
        """
        reader = self.dataset if self.reader is None else self.reader
        if hasattr(reader, 'targets'):
            labels = [*reader.targets]
        elif hasattr(reader, 'iter_targets'):
            labels = [*reader.iter_targets()]
        elif hasattr(reader, 'samples'):
            labels = [label for _, label in reader.samples]
        else:
            raise ValueError('This data set does not list its labels: name a validation split.')
        return [int(labels[index]) for index in self.indices]

    def class_names(self) -> list[str] | None:
        """The names of the classes by index; None if unknown."""
        return _class_names(self.dataset)

    def subset(self, indices: Sequence[int]) -> 'ImageDataset':
        """Some of the images, in the given order."""
        return ImageDataset(self.dataset, indices=[self.indices[index] for index in indices], mode=self.mode)


class SyntheticImages(ImageDataset):
    """Images of `timm_sk.shapes`, for a smoke test without data.

    Args:
        count: Number of images.
        seed: Random seed.
        size: Height and width in pixels.
        mode: Pillow's mode of the images.
    """

    def __init__(self, count: int, *, seed: int, size: int = 32, mode: str = 'RGB') -> None:
        pixels, labels = shapes.draw(count, seed=seed, size=size)
        super().__init__(_InMemory(zip(map(Image.fromarray, pixels), labels.tolist(), strict=True)), mode=mode)


class _InMemory(list[tuple[Image.Image, int]]):
    """Images and labels of `timm_sk.shapes`, with the attributes of torchvision's data sets."""

    class_to_idx: ClassVar = {name: index for index, name in enumerate(shapes.CLASS_NAMES)}

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self]


class ImageStream:
    """Labelled images in sequence: a data set of shards, which timm distributes over ranks and workers.

    Args:
        dataset: Data set of shards, as `timm.data.create_dataset` gives it.
        shards: Its files, if a worker reads whole shards; None if its library distributes images in other ways.
    """

    def __init__(self, dataset: IterableImageDataset, *, shards: Sequence[str] | None = None) -> None:
        self.dataset = dataset
        self.shards = shards

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def total(self) -> int:
        """Number of images in all processes together."""
        return len(self) if self.shards is None else self.dataset.reader.num_samples

    def __iter__(self) -> Iterator[tuple[Image.Image | None, int, list[str]]]:
        """Yield images, labels, and the names of unreadable images before each; the last image may be None."""
        reader = copy.copy(self.dataset.reader)  # a reader would continue its shuffling
        if self.shards is None:
            for image, label in reader:
                yield image, int(label), []
        elif self.shards:
            decoder = record_bad_images(reader)
            for image, label in reader:
                yield image, int(label), decoder.pop_bad()
            if bad := decoder.pop_bad():
                yield None, -1, bad

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Go to an epoch, whose order follows from its seed."""
        self.dataset.set_epoch(epoch)
        self.dataset.reader.worker_seed = seed  # workers get theirs from torch

    def share(self, context: DistributedContext) -> 'ImageStream':
        """The shards of one process; all processes together have every image once.

        timm gives each process equally many images instead, and so drops or repeats some.
        """
        if self.shards is None:
            return self
        dataset = copy.copy(self.dataset)
        dataset.reader = reader = copy.copy(self.dataset.reader)
        info, own = reader.split_info, tuple(self.shards[context.rank :: context.size])
        lengths = dict(zip(info.filenames, info.shard_lengths, strict=False))  # may be missing
        reader.split_info = replace(info, filenames=own)
        reader.num_samples = sum(lengths.get(name, 0) for name in own)
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        return ImageStream(dataset, shards=own)

    def class_names(self) -> list[str] | None:
        """The names of the classes by index; None if unknown."""
        return _class_names(self.dataset)


def open_dataset(
    data: str,
    *,
    split: str,
    data_dir: str | None = None,
    mode: str = 'RGB',
    class_map: str | Mapping[str, int] | None = None,
    download: bool = False,
    is_training: bool = False,
    batch_size: int = 1,
    num_samples: int | None = None,
    seed: int = 0,
) -> ImageDataset | ImageStream:
    """Open one split of a data set.

    Args:
        data: Folder with a folder per class, tar of such a folder, or `torch/NAME`, `hfds/NAME`, `wds/FOLDER`,
            `hfids/NAME` or `tfds/NAME` as in `timm.data.create_dataset`.
        split: Name of the split; of a folder, a folder inside it if there is one of this name.
        data_dir: Folder where named data sets are stored; the working directory or the library's cache by default.
        mode: Pillow's mode of the images, 'RGB' or 'L'.
        class_map: Class indices by name, or a file with the names.
        download: Download the data set if it is missing.
        is_training: Shuffle shards.
        batch_size: Batch size, which some streams need.
        num_samples: Number of images in the split, for streams of unknown length.
        seed: Seed of the order of shards.

    Raises:
        ValueError: If the data set or the split does not exist, or the library that reads it is missing.
    """
    prefix, _, rest = data.partition('/')
    prefix = prefix.lower() if prefix.lower() in (*MAP_PREFIXES, *STREAM_PREFIXES) and not Path(data).exists() else ''
    root, name = data_dir, data
    options: dict[str, Any] = dict(class_map=class_map or None, num_samples=num_samples)
    if not prefix:
        root, name = data, ''
        _require_images(Path(data))
        if Path(data).is_file():
            options['cache_tarfiles'] = False  # all workers would share the position of an open tar
    elif prefix == 'torch':
        root, options = data_dir or '.', {}
    elif prefix == 'wds':
        root, name = rest, 'wds/'
    if prefix in STREAM_PREFIXES:
        options |= dict(is_training=is_training, batch_size=batch_size, seed=seed)
    try:
        dataset = timm.data.create_dataset(
            name, root=root, split=split, download=download, input_img_mode=mode, **options
        )
    except ImportError as error:
        raise ValueError(f'{data}: {error}. Install the library that reads it: pip install "timm_sk[data]".') from error
    except Exception as error:  # each library has its own errors
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{data}, split {split}, cannot be opened: {line}') from error
    if prefix in STREAM_PREFIXES:
        return ImageStream(dataset, shards=dataset.reader.split_info.filenames if prefix == 'wds' else None)
    if not len(dataset):
        raise ValueError(f'{data}, split {split}, has no images.')
    return ImageDataset(dataset, mode=mode)


def _require_images(root: Path) -> None:
    if not root.exists():
        raise ValueError(f'{root}: no such folder or tar of images. Other data sets begin with hfds/, wds/ or torch/.')
    if root.is_file() and root.suffix != '.tar':
        raise ValueError(f'{root}: neither a folder nor a .tar of images.')
    if root.is_dir() and not os.listdir(root):
        raise ValueError(f'{root}: the folder is empty. It should hold a folder of images for each class.')


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, 'reader', dataset)
    indices: Mapping[str, int] = getattr(reader, 'class_to_idx', getattr(reader, 'class_name_to_idx', None)) or {}
    if not indices:
        return None
    names = {index: name for name, index in indices.items()}
    return [str(names.get(index, index)) for index in range(max(names) + 1)]
