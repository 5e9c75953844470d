"""Training and validation split of a data set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .datasets import ImageDataset, ImageStream, folder_of, open_dataset, with_channels
from .folders import TRAIN_NAMES, VAL_NAMES, has_validation_split
from .images import few


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training and validation images and their classes."""

    train: ImageDataset | ImageStream
    val: ImageDataset | ImageStream  # none of them is a training image
    class_names: list[str] | None  # by index; None if unknown
    num_classes: int
    held_out: float | None  # fraction of each class that the validation images are; None if they have a split

    def with_channels(self, channels: int) -> 'Splits':
        """The same images, read with a number of channels."""
        return replace(self, train=with_channels(self.train, channels), val=with_channels(self.val, channels))


def make_splits(
    train: ImageDataset | ImageStream,
    val: ImageDataset | ImageStream | None,
    *,
    val_fraction: float,
    num_classes: int | None,
    seed: int,
) -> Splits:
    """The splits of opened data; if there is no validation split, a fraction of each class is held out.

    Raises:
        ValueError: If there are too few images to hold out some, or another number of classes.
    """
    held_out = val_fraction if val is None else None
    if val is None:
        first, second = split_indices(train.targets(), val_fraction, seed)  # type: ignore[union-attr]
        train, val = train.subset(first), train.subset(second)  # type: ignore[union-attr]
    names = train.class_names()
    found = len(names) if names is not None else _count_classes(train, val)
    if num_classes is not None and found is not None and num_classes != found:
        raise ValueError(f'num_classes is {num_classes}, but the data has {found} classes: omit it, or fix the data.')
    count = num_classes or found
    if count is None:
        raise ValueError('The number of classes of the data is unknown: pass --num-classes.')
    return Splits(train=train, val=val, class_names=names, num_classes=count, held_out=held_out)


def open_parts(
    data: str, *, train_split: str = 'train', val_split: str = 'validation', seed: int = 0, **options: Any
) -> tuple[ImageDataset | ImageStream, ImageDataset | ImageStream | None]:
    """Open the training split of a data set, or all of it, and the validation split, with options of `open_dataset`.

    The second is None if the data set has only one split, which then has an index.

    Raises:
        ValueError: If a split cannot be opened, a class has no images, or the classes of the two differ.
    """
    root = folder_of(data, options.get('data_dir'))
    tests = () if root is not None or not data.lower().startswith('torch/') else ('test',)  # there the same
    if any(train_split in names and val_split in names for names in ([train_split], TRAIN_NAMES, VAL_NAMES + tests)):
        raise ValueError(f'{train_split} and {val_split} name the same split: name two, for training and validation.')
    train = open_dataset(data, split=train_split, seed=seed, is_training=True, **options)
    if root is not None:
        is_split = has_validation_split(root, val_split)
    else:
        is_split = val_split not in VAL_NAMES or val_split in (_split_names(train) or [val_split])
    val = open_dataset(data, split=val_split, seed=seed, **options) if is_split else None
    names, val_names = train.class_names(), None if val is None else val.class_names()
    if names is not None and val_names is not None and names != val_names:
        raise ValueError(_difference(names, val_names))
    return train, val


def split_indices(targets: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the indices of labels in two ascending parts, of which the second has a fraction of each class.

    A class with a single image has it in the first part.

    Raises:
        ValueError: If the second part would be empty.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(targets):
        by_class[label].append(index)
    stream = np.random.RandomState(np.random.PCG64(seed))
    second: set[int] = set()
    for _, members in sorted(by_class.items()):
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second.update(members[position] for position in stream.permutation(len(members))[:count])
    if not second:
        raise ValueError(
            f'Cannot hold out validation images from {len(targets)} image{"s" * (len(targets) != 1)} with at most one '
            'per class: add images, or name a validation split.'
        )
    return [index for index in range(len(targets)) if index not in second], sorted(second)


def _split_names(images: ImageDataset | ImageStream) -> list[str] | None:
    """The splits of a data set of Hugging Face's library; None if unknown."""
    info = getattr(getattr(images.dataset, 'reader', None), 'dataset', None)
    splits = getattr(getattr(info, 'info', None), 'splits', None)
    return [*splits] if splits else None


def _count_classes(*parts: ImageDataset | ImageStream) -> int | None:
    if any(isinstance(part, ImageStream) for part in parts):
        return None
    return max(max(part.targets()) for part in parts) + 1  # type: ignore[union-attr]


def _difference(train: list[str], val: list[str]) -> str:
    only = []
    for part, names in (('training', {*train} - {*val}), ('validation', {*val} - {*train})):
        if names:
            only.append(f'only in {part}: {few(sorted(names), 5, ", ")}')
    return f'The classes of the two splits differ, {"; ".join(only) or "in their order"}: use the same folders.'
