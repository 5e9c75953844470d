"""A data set of pictures with labels, opened by `timm.data.create_dataset`, read one picture at a time.

timm's own reading replaces a picture that cannot be decoded by its neighbour and says so in a log. Here reading raises,
so that the loader decides: in training a neighbour takes its place, in validation it is left out, and both are counted.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm.data
from PIL import Image
from timm.data import IterableImageDataset

from .. import shapes

MAP_PREFIXES = ('torch', 'hfds')
STREAM_PREFIXES = ('wds', 'hfids', 'tfds')
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UnreadableSampleError(ValueError):
    """Raised when one picture of a data set cannot be decoded; names it, and says why."""


class Pictures:
    """Pictures with labels, by index.

    Args:
        dataset: What `timm.data.create_dataset` gives for a data set that has a length and can be indexed.
        indices: Which of its pictures; all of them if not given.
        mode: Pillow's mode of the pictures, 'RGB' or 'L'.
    """

    def __init__(self, dataset: Any, *, indices: Sequence[int] | None = None, mode: str = 'RGB') -> None:
        self.dataset = dataset
        self.indices = indices
        self.mode = mode

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one picture in full; gives it and its label.

        Raises:
            UnreadableSampleError: If it cannot be read or decoded.
        """
        there = self._there(index)
        reader = getattr(self.dataset, 'reader', None)
        try:
            if reader is None:  # torchvision's data sets decode by themselves
                picture, label = self.dataset[there]
                return picture.convert(self.mode), int(label)
            file, label = reader[there]
            with file, Image.open(file) as picture:
                return picture.convert(self.mode), -1 if label is None else int(label)
        except _DECODING_ERRORS as error:
            raise UnreadableSampleError(f'{self.name(index)}: {error}') from error

    def name(self, index: int) -> str:
        """The file that a picture is from, inside the data set, or its number where it is from none."""
        there = self._there(index)
        reader = getattr(self.dataset, 'reader', None)
        name = reader.filename(there, absolute=True) if reader is not None else None
        return str(name) if name else f'picture {there}'

    def targets(self) -> list[int]:
        """The label of every picture, read without decoding any.

        Raises:
            ValueError: If the data set does not tell them without its pictures.
        """
        reader = getattr(self.dataset, 'reader', None)
        if hasattr(reader, 'samples'):
            found = [label for _, label in reader.samples]
        elif hasattr(reader, 'iter_targets'):
            found = [*reader.iter_targets()]
        elif hasattr(self.dataset, 'targets'):
            found = [*self.dataset.targets]
        else:
            raise ValueError('This data set does not tell its labels without its pictures: name a validation split.')
        labels = [int(label) for label in found]
        return labels if self.indices is None else [labels[index] for index in self.indices]

    def class_names(self) -> list[str] | None:
        """The names of the classes by their index; None where the data set has none."""
        return _class_names(self.dataset)

    def subset(self, indices: Sequence[int]) -> 'Pictures':
        """Some of these pictures, in the order given."""
        return Pictures(self.dataset, indices=[self._there(index) for index in indices], mode=self.mode)

    def _there(self, index: int) -> int:
        return index if self.indices is None else self.indices[index]


class SyntheticPictures(Pictures):
    """Pictures drawn by `timm_sk.shapes`, the same for a seed: to try a run with no data.

    Args:
        count: How many.
        seed: Of the drawing.
        size: Height and width in pixels.
        mode: Pillow's mode of the pictures.
    """

    def __init__(self, count: int, *, seed: int, size: int = 32, mode: str = 'RGB') -> None:
        pixels, labels = shapes.draw(count, seed=seed, size=size)
        drawn = [(Image.fromarray(picture), int(label)) for picture, label in zip(pixels, labels, strict=True)]
        super().__init__(drawn, mode=mode)

    def targets(self) -> list[int]:
        return [label for _, label in self.dataset]

    def class_names(self) -> list[str]:
        return [*shapes.CLASS_NAMES]


class PictureStream:
    """Pictures with labels, one after the other: a data set of shards, which timm shares among ranks and workers."""

    def __init__(self, dataset: IterableImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for picture, label in self.dataset:
            yield picture, int(label)

    def class_names(self) -> list[str] | None:
        """The names of the classes by their index; None where the data set has none."""
        return _class_names(self.dataset)


def open_pictures(
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
) -> Pictures | PictureStream:
    """Open one split of a data set.

    Args:
        data: A folder with a folder per class, a tar of that, or `torch/NAME`, `hfds/NAME`, `wds/FOLDER`, `hfids/NAME`
            or `tfds/NAME` as in `timm.data.create_dataset`.
        split: Name of the split; for a folder, one inside it if there is such a one.
        data_dir: Where a data set that has a name is kept; the working directory, or the library's own cache.
        mode: Pillow's mode of the pictures, 'RGB' or 'L'.
        class_map: Class indices by name, or a file that lists the names.
        download: Whether the data set may be downloaded.
        is_training: Whether shards are shuffled.
        batch_size: Pictures in a batch, which some streams need to know.
        num_samples: Pictures in the split, for a stream that does not say so.
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
        _require_pictures(Path(data))
    options: dict[str, Any] = dict(class_map=class_map or None, num_samples=num_samples)
    if prefix in STREAM_PREFIXES:
        options |= dict(is_training=is_training, batch_size=batch_size, seed=seed)
    if prefix == 'torch':
        options = {}
    try:
        dataset = timm.data.create_dataset(
            name, root=root, split=split, download=download, input_img_mode=mode, **options
        )
    except ImportError as error:
        raise ValueError(f'{data}: {error}. Install the library that reads it: pip install "timm_sk[data]".') from error
    except (AssertionError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise ValueError(f'{data}, split {split}, cannot be opened: {_first_line(error)}') from error
    if prefix in STREAM_PREFIXES:
        return PictureStream(dataset)
    if not len(dataset):
        raise ValueError(f'{data}, split {split}, has no pictures.')
    return Pictures(dataset, mode=mode)


def _require_pictures(root: Path) -> None:
    if not root.exists():
        raise ValueError(
            f'{root}: no such folder or tar of pictures. Other data sets begin with hfds/, wds/ or torch/.'
        )
    if root.is_file() and root.suffix != '.tar':
        raise ValueError(f'{root}: not a folder, nor a .tar of pictures.')
    if root.is_dir() and not os.listdir(root):
        raise ValueError(f'{root}: the folder is empty. It should hold a folder of pictures for each class.')


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, 'reader', dataset)
    indices: Mapping[str, int] = getattr(reader, 'class_to_idx', None) or {}
    if not indices:
        return None
    names = {index: name for name, index in indices.items()}
    return [str(names.get(index, index)) for index in range(max(names) + 1)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
