"""A data set of images with labels, opened by `timm.data.create_dataset`, read one image at a time.

timm's own reading replaces an image that cannot be decoded by its neighbour and says so in a log. Here reading raises,
so that the loader decides: in training a neighbour takes its place, in validation it is left out, and both are counted.
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
from .shards import name_the_undecodable

MAP_PREFIXES = ('torch', 'hfds')
STREAM_PREFIXES = ('wds', 'hfids', 'tfds')


class ImageDataset:
    """Images with labels, by index.

    Args:
        dataset: What `timm.data.create_dataset` gives for a data set that has a length and can be indexed.
        indices: Which of its images; all of them if not given.
        mode: Pillow's mode of the images, 'RGB' or 'L'.
    """

    def __init__(self, dataset: Any, *, indices: Sequence[int] | None = None, mode: str = 'RGB') -> None:
        self.dataset = dataset
        self.indices = indices
        self.mode = mode

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    @property
    def total(self) -> int:
        """How many there are in all processes together."""
        return len(self)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image in full; gives it and its label.

        Raises:
            UnreadableSampleError: If it cannot be read or decoded.
        """
        there = self._there(index)
        reader = getattr(self.dataset, 'reader', None)
        try:
            if reader is None:  # torchvision's data sets decode by themselves
                image, label = self.dataset[there]
                return image.convert(self.mode), int(label)
            file, label = reader[there]
            with file, Image.open(file) as image:
                return image.convert(self.mode), -1 if label is None else int(label)
        except DECODING_ERRORS as error:
            raise UnreadableSampleError(f'{self.name(index)}: {reason(error)}') from error

    def name(self, index: int) -> str:
        """The file that an image is from, inside the data set, or its number where it is from none."""
        there = self._there(index)
        reader = getattr(self.dataset, 'reader', None)
        if reader is not None:
            name = reader.filename(there, absolute=True)
        else:  # torchvision's folders list theirs
            name = self.dataset.samples[there][0] if hasattr(self.dataset, 'samples') else None
        return str(name) if name else f'image {there}'

    def targets(self) -> list[int]:
        """The label of every image, read without decoding any.

        Raises:
            ValueError: If the data set does not tell them without its images.
        """
        reader = getattr(self.dataset, 'reader', self.dataset)
        if hasattr(reader, 'targets'):
            found = [*reader.targets]
        elif hasattr(reader, 'iter_targets'):
            found = [*reader.iter_targets()]
        elif hasattr(reader, 'samples'):
            found = [label for _, label in reader.samples]
        else:
            raise ValueError('This data set does not tell its labels without its images: name a validation split.')
        labels = [int(label) for label in found]
        return labels if self.indices is None else [labels[index] for index in self.indices]

    def class_names(self) -> list[str] | None:
        """The names of the classes by their index; None where the data set has none."""
        return _class_names(self.dataset)

    def subset(self, indices: Sequence[int]) -> 'ImageDataset':
        """Some of these images, in the order given."""
        return ImageDataset(self.dataset, indices=[self._there(index) for index in indices], mode=self.mode)

    def _there(self, index: int) -> int:
        return index if self.indices is None else self.indices[index]


class SyntheticImages(ImageDataset):
    """Images drawn by `timm_sk.shapes`, the same for a seed: to try a run with no data.

    Args:
        count: How many.
        seed: Of the drawing.
        size: Height and width in pixels.
        mode: Pillow's mode of the images.
    """

    def __init__(self, count: int, *, seed: int, size: int = 32, mode: str = 'RGB') -> None:
        pixels, labels = shapes.draw(count, seed=seed, size=size)
        super().__init__(
            _Drawn((Image.fromarray(image), int(label)) for image, label in zip(pixels, labels, strict=True)),
            mode=mode,
        )


class _Drawn(list[tuple[Image.Image, int]]):
    """Images in memory, which tell labels and classes as torchvision's data sets do."""

    class_to_idx: ClassVar = {name: index for index, name in enumerate(shapes.CLASS_NAMES)}

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self]


class ImageStream:
    """Images with labels, one after the other: a data set of shards, which timm shares among ranks and workers.

    Args:
        dataset: What `timm.data.create_dataset` gives for such a data set.
        shards: Its files, where each is read by one worker as a whole; None where its library shares in other ways.
    """

    def __init__(self, dataset: IterableImageDataset, *, shards: Sequence[str] | None = None) -> None:
        self.dataset = dataset
        self.shards = shards

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def total(self) -> int:
        """How many there are in all processes together."""
        return len(self) if self.shards is None else self.dataset.reader.num_samples

    def __iter__(self) -> Iterator[tuple[Image.Image | None, int, list[str]]]:
        """Read; gives an image, its label, and what could not be read before it.

        Shards of webdataset may end with such; then the last image is None.
        """
        reader = copy.copy(self.dataset.reader)  # a reader shuffles on from where it was left
        if self.shards is None:
            for image, label in reader:
                yield image, int(label), []
        elif self.shards:
            decoder = name_the_undecodable(reader)
            for image, label in reader:
                yield image, int(label), decoder.bad()
            if bad := decoder.bad():
                yield None, -1, bad

    def begin(self, epoch: int, seed: int) -> None:
        """Go to an epoch, whose order follows from the seed that it gets."""
        self.dataset.set_epoch(epoch)
        self.dataset.reader.worker_seed = seed  # where there are workers, each has one from torch instead

    def share(self, context: DistributedContext) -> 'ImageStream':
        """The part of one process; those of all processes together have every image once.

        timm gives each process the same count instead, for which some images are left out and others come twice.
        """
        if self.shards is None:
            return self
        dataset = copy.copy(self.dataset)
        dataset.reader = reader = copy.copy(self.dataset.reader)
        info, own = reader.split_info, tuple(self.shards[context.rank :: context.size])
        lengths = dict(zip(info.filenames, info.shard_lengths, strict=False))  # a list of shards may have none
        reader.split_info = replace(info, filenames=own)
        reader.num_samples = sum(lengths.get(name, 0) for name in own)
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        return ImageStream(dataset, shards=own)

    def class_names(self) -> list[str] | None:
        """The names of the classes by their index; None where the data set has none."""
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
        data: A folder with a folder per class, a tar of that, or `torch/NAME`, `hfds/NAME`, `wds/FOLDER`, `hfids/NAME`
            or `tfds/NAME` as in `timm.data.create_dataset`.
        split: Name of the split; for a folder, one inside it if there is such a one.
        data_dir: Where a data set that has a name is kept; the working directory, or the library's own cache.
        mode: Pillow's mode of the images, 'RGB' or 'L'.
        class_map: Class indices by name, or a file that lists the names.
        download: Whether the data set may be downloaded.
        is_training: Whether shards are shuffled.
        batch_size: ImageDataset in a batch, which some streams need to know.
        num_samples: ImageDataset in the split, for a stream that does not say so.
        seed: Of the order of shards.

    Raises:
        ValueError: If there is no such data set or split, or a library that reads it is missing.
    """
    prefix, _, rest = data.partition('/')
    prefix = prefix.lower() if prefix.lower() in (*MAP_PREFIXES, *STREAM_PREFIXES) and not Path(data).exists() else ''
    root, name = (data, '') if not prefix else (data_dir, data)
    if prefix == 'wds':
        root, name = rest, 'wds/'
    if prefix == 'torch':
        root = data_dir or '.'
    if not prefix:
        _require_images(Path(data))
    # An open tar would be shared by all workers, each of which moves its place.
    tar_options = dict(cache_tarfiles=False) if not prefix and Path(data).is_file() else {}
    options: dict[str, Any] = dict(class_map=class_map or None, num_samples=num_samples)
    if prefix in STREAM_PREFIXES:
        options |= dict(is_training=is_training, batch_size=batch_size, seed=seed)
    if prefix == 'torch':
        options = {}
    try:
        dataset = timm.data.create_dataset(
            name, root=root, split=split, download=download, input_img_mode=mode, **options, **tar_options
        )
    except ImportError as error:
        raise ValueError(f'{data}: {error}. Install the library that reads it: pip install "timm_sk[data]".') from error
    except Exception as error:  # each of the libraries that read data sets has errors of its own
        raise ValueError(f'{data}, split {split}, cannot be opened: {_first_line(error)}') from error
    if prefix in STREAM_PREFIXES:
        return ImageStream(dataset, shards=dataset.reader.split_info.filenames if prefix == 'wds' else None)
    if not len(dataset):
        raise ValueError(f'{data}, split {split}, has no images.')
    return ImageDataset(dataset, mode=mode)


def _require_images(root: Path) -> None:
    if not root.exists():
        raise ValueError(f'{root}: no such folder or tar of images. Other data sets begin with hfds/, wds/ or torch/.')
    if root.is_file() and root.suffix != '.tar':
        raise ValueError(f'{root}: not a folder, nor a .tar of images.')
    if root.is_dir() and not os.listdir(root):
        raise ValueError(f'{root}: the folder is empty. It should hold a folder of images for each class.')


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, 'reader', dataset)
    indices: Mapping[str, int] = getattr(reader, 'class_to_idx', getattr(reader, 'class_name_to_idx', None)) or {}
    if not indices:
        return None
    names = {index: name for name, index in indices.items()}
    return [str(names.get(index, index)) for index in range(max(names) + 1)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
