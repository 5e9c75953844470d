"""Data sets of labelled images, read one image at a time: folders and tars of ours, the others of timm's.

timm replaces an image that cannot be decoded by its neighbour. Here reading raises, and the loader decides: in training
a neighbour is used instead, in validation the image is left out, and both are counted.
"""

import copy
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import timm.data
from PIL import Image
from timm.data import IterableImageDataset

from ..distributed import DistributedContext
from . import shapes
from .folders import TRAIN_NAMES, VAL_NAMES, ClassFolders, DataFolderError, require_split_for_timm
from .images import IMAGE_ENDINGS, UnreadableSampleError, decode_image, printable, reason, to_channels
from .shards import decode_with

Decode = Callable[[BinaryIO, int], Any]  # of a file and a number of channels
T = TypeVar('T', bound='ImageDataset | ImageStream')

MAP_PREFIXES = ('torch', 'hfds')
STREAM_PREFIXES = ('wds', 'hfids', 'tfds')
_TORCH_FOLDERS = ('torch/image_folder', 'torch/folder')
_TORCH_TWO_PARTS = tuple(
    f'torch/{name}' for name in ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
)
_UNWRITABLE = ('Cc', 'Cs', 'Zl', 'Zp')  # in names of classes: controls, bytes that are not UTF-8, line breaks


class ImageDataset:
    """Labelled images by index, of a data set as `timm.data.create_dataset` gives it, or of `ClassFolders`."""

    def __init__(self, dataset: Any, *, decode: Decode = decode_image) -> None:
        self.dataset = dataset
        # torchvision's have none
        self.reader = dataset if isinstance(dataset, ClassFolders) else getattr(dataset, 'reader', None)
        self.files = getattr(dataset, 'samples', getattr(dataset, 'imgs', None))  # torchvision's paths and labels
        self.indices: Sequence[int] = range(len(dataset))
        self.channels, self.decode = 3, decode

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def total(self) -> int:
        """Number of images in all processes together."""
        return len(self)

    def read(self, index: int) -> tuple[Any, int]:
        """Decode an image completely; returns it, as `read_image` does, and its label.

        Raises:
            UnreadableSampleError: If it cannot be read or decoded.
        """
        inner = self.indices[index]
        try:
            if self.reader is not None:
                source, label = self.reader[inner]
            elif self.files is not None:
                path, label = self.files[inner]
                source = Path(path).open('rb')  # noqa: SIM115 - closed below
            else:
                image, label = self.dataset[inner]
                return to_channels(image, self.channels), int(label)
            with source as file:
                return self.decode(file, self.channels), -1 if label is None else int(label)
        except Exception as error:  # decoders raise many kinds on damaged files
            has_file = self.reader is not None or self.files is not None
            if not has_file and not isinstance(error, OSError | ValueError):
                raise
            raise UnreadableSampleError(f'{self.name(index)}: {reason(error)}') from error

    def name(self, index: int) -> str:
        """The file of an image inside the data set, or its number if it has no file."""
        inner = self.indices[index]
        if self.reader is not None:
            name = self.reader.filename(inner, absolute=True)
        else:
            name = self.files[inner][0] if self.files else None
        return printable(str(name)) if name else f'image {inner}'

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
        part = copy.copy(self)
        part.indices = [self.indices[index] for index in indices]
        return part


class SyntheticImages(ImageDataset):
    """Images of `timm_sk.shapes`, for a smoke test without data."""

    def __init__(self, count: int, *, seed: int, size: int = 32) -> None:
        pixels, labels = shapes.draw(count, seed=seed, size=size)
        super().__init__([*zip(map(Image.fromarray, pixels), labels.tolist(), strict=True)])

    def targets(self) -> list[int]:
        return [self.dataset[index][1] for index in self.indices]

    def class_names(self) -> list[str]:
        return [*shapes.CLASS_NAMES]


class ImageStream:
    """Labelled images in sequence: a data set of shards, which timm distributes over ranks and workers.

    Args:
        dataset: Data set of shards, as `timm.data.create_dataset` gives it.
        shards: Its files, if a worker reads whole shards; None if its library distributes images in other ways.
        decode: Decodes an image of a shard.
    """

    def __init__(
        self, dataset: IterableImageDataset, *, shards: Sequence[str] | None = None, decode: Decode = decode_image
    ) -> None:
        self.dataset = dataset
        self.shards = shards
        self.channels, self.decode = 3, decode

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def total(self) -> int:
        """Number of images in all processes together."""
        return len(self) if self.shards is None else self.dataset.reader.num_samples

    def __iter__(self) -> Iterator[tuple[Any, int, list[str]]]:
        """Yield images, labels, and the names of unreadable images before each; the last image may be None."""
        reader = copy.copy(self.dataset.reader)  # a reader would continue its shuffling
        if self.shards is None:
            for position, (image, label) in enumerate(reader):
                try:
                    yield to_channels(image, self.channels), int(label), []
                except ValueError as error:
                    yield None, -1, [f'image {position}: {reason(error)}']
        elif self.shards:
            decoder = decode_with(reader, lambda file: self.decode(file, self.channels))
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
        stream, dataset = copy.copy(self), copy.copy(self.dataset)
        dataset.reader = reader = copy.copy(self.dataset.reader)
        info, own = reader.split_info, tuple(self.shards[context.rank :: context.size])
        lengths = dict(zip(info.filenames, info.shard_lengths, strict=False))  # may be missing
        reader.split_info = replace(info, filenames=own)
        reader.num_samples = sum(lengths.get(name, 0) for name in own)
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        stream.dataset, stream.shards = dataset, own
        return stream

    def class_names(self) -> list[str] | None:
        """The names of the classes by index; None if unknown."""
        return _class_names(self.dataset)


def with_channels(images: T, channels: int) -> T:
    """The same images, read with a number of channels: 3 for RGB, 1 for grey, another one for those in the files."""
    images = copy.copy(images)
    images.channels = channels
    return images


def open_dataset(
    data: str,
    *,
    split: str,
    data_dir: str | None = None,
    class_map: str | Mapping[str, int] | None = None,
    download: bool = False,
    is_training: bool = False,
    batch_size: int = 1,
    num_samples: int | None = None,
    seed: int = 0,
    timm_reader: bool = False,
) -> ImageDataset | ImageStream:
    """Open one split of a data set.

    Args:
        data: Folder with a folder per class, tar of such a folder, or `torch/NAME`, `hfds/NAME`, `wds/FOLDER`,
            `hfids/NAME` or `tfds/NAME` as in `timm.data.create_dataset`.
        split: Name of the split: a folder inside the folder or tar, or all of it if it has no splits.
        data_dir: Folder where named data sets are stored; the working directory or the library's cache by default.
        class_map: Class indices by name, or a file with the names.
        download: Download the data set if it is missing.
        is_training: Shuffle shards.
        batch_size: Batch size, which some streams need.
        num_samples: Number of images in the split, for streams of unknown length.
        seed: Seed of the order of shards.
        timm_reader: Find and read images as timm does: the innermost folder is the class, only .png, .jpg and .jpeg,
            no EXIF orientation, no conversion of 16-bit greys.

    Raises:
        ValueError: If the data set or the split does not exist, or the library that reads it is missing.
    """
    folder, prefix = folder_of(data, data_dir), _prefix(data)
    if folder is not None:
        _require_images(folder)
        with _library_errors(data, split):
            if not timm_reader:
                return ImageDataset(ClassFolders(folder, split, class_map=class_map, natural_order=not prefix))
            require_split_for_timm(folder, split)
    root, name = data_dir, data
    options: dict[str, Any] = dict(class_map=class_map or None, num_samples=num_samples)
    if not prefix:
        root, name = data, ''
        options['cache_tarfiles'] = False if Path(data).is_file() else None  # workers would share an open tar
    elif prefix == 'torch':
        root, options = data_dir or '.', {}
        if data.lower() in _TORCH_TWO_PARTS and split not in (*TRAIN_NAMES, *VAL_NAMES, 'test'):
            raise ValueError(f'{data} has no split {split}: name train or test.')  # timm would take test
    elif prefix == 'wds':
        root, name = data.partition('/')[2], 'wds/'
        options['input_key'] = None if timm_reader else ';'.join(ending[1:] for ending in IMAGE_ENDINGS)
    if prefix in STREAM_PREFIXES:
        options |= dict(is_training=is_training, batch_size=batch_size, seed=seed)
    mode = '' if prefix == 'hfids' and not timm_reader else 'RGB'
    decode = _decode_as_timm if timm_reader else decode_image
    with _library_errors(data, split):
        dataset = timm.data.create_dataset(
            name, root=root, split=split, download=download, input_img_mode=mode, **options
        )
    if prefix in STREAM_PREFIXES:
        shards = dataset.reader.split_info.filenames if prefix == 'wds' else None
        return ImageStream(dataset, shards=shards, decode=decode)
    if not len(dataset):
        raise ValueError(f'{data}, split {split}, has no images.')
    return ImageDataset(dataset, decode=decode)


def folder_of(data: str, data_dir: str | None) -> Path | None:
    """The folder or tar of a data set; None if a library has it by name."""
    if data.lower() in _TORCH_FOLDERS:
        return Path(data_dir or '.')
    return None if _prefix(data) else Path(data)


def _prefix(data: str) -> str:
    prefix = data.partition('/')[0].lower()
    return prefix if prefix in (*MAP_PREFIXES, *STREAM_PREFIXES) and not Path(data).exists() else ''


@contextmanager
def _library_errors(data: str, split: str) -> Iterator[None]:
    """Turn the errors of the libraries that open data sets into one line."""
    try:
        yield
    except DataFolderError:
        raise
    except ImportError as error:
        raise ValueError(f'{data}: {error}. Install the library that reads it: pip install "timm_sk[data]".') from error
    except Exception as error:  # each library has its own errors
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{data}, split {split}, cannot be opened: {line}') from error


def _decode_as_timm(file: BinaryIO, channels: int) -> Image.Image:
    with Image.open(file) as image:
        return image.convert('L' if channels == 1 else 'RGB')


def _require_images(root: Path) -> None:
    if not root.exists():
        raise ValueError(
            f'{root}: no such folder or tar of images. Other data sets begin with hfds/, wds/ or torch/; '
            'torch/cifar10 --dataset-download, for example, needs no file, but a network.'
        )
    if root.is_file() and root.suffix != '.tar':
        raise ValueError(f'{root}: neither a folder nor a .tar of images.')
    if root.is_dir() and not os.listdir(root):
        raise ValueError(f'{root}: the folder is empty. It should hold a folder of images for each class.')


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, 'reader', dataset)
    indices: Mapping[str, int] = getattr(reader, 'class_to_idx', getattr(reader, 'class_name_to_idx', None)) or {}
    if not indices:
        return None
    names = {index: str(name) for name, index in indices.items()}
    for name in names.values():
        if any(unicodedata.category(letter) in _UNWRITABLE for letter in name):
            raise ValueError(f'Invalid name of a class, {name!a}: rename it, in UTF-8 and without line breaks.')
    return [names.get(index, str(index)) for index in range(max(names) + 1)]
