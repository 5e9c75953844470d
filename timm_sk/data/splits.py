"""Training and validation split of a data set."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import get_img_extensions

from .datasets import MAP_PREFIXES, STREAM_PREFIXES, ImageDataset, ImageStream, open_dataset

_TRAIN_FOLDERS = ('train', 'training')  # the synonyms of `timm.data.create_dataset`
_VAL_FOLDERS = ('val', 'valid', 'validation', 'eval', 'evaluation')
_TORCH_FOLDERS = (('torch', 'image_folder'), ('torch', 'folder'))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training and validation images and their classes.

    Attributes:
        train: Training images.
        val: Validation images; none of them is a training image.
        class_names: Names of the classes by index; None if unknown.
        num_classes: Number of classes.
        was_cut: Whether the validation images were held out from the only split of the data set.
    """

    train: ImageDataset | ImageStream
    val: ImageDataset | ImageStream
    class_names: list[str] | None
    num_classes: int
    was_cut: bool


def make_splits(
    train: ImageDataset | ImageStream,
    val: ImageDataset | ImageStream | None,
    *,
    val_fraction: float = 0.1,
    num_classes: int | None = None,
    seed: int = 0,
) -> Splits:
    """The splits of opened data; holds out a validation split if there is none.

    Args:
        train: Training images.
        val: Validation images, if any.
        val_fraction: Fraction of each class to hold out.
        num_classes: Expected number of classes; the data set's by default.
        seed: Seed of the held-out images.

    Raises:
        ValueError: If there are too few images to hold out some, or another number of classes.
    """
    was_cut = val is None
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
    return Splits(train=train, val=val, class_names=names, num_classes=count, was_cut=was_cut)


def open_parts(
    data: str, *, train_split: str = 'train', val_split: str = 'validation', seed: int = 0, **options: Any
) -> tuple[ImageDataset | ImageStream, ImageDataset | ImageStream | None]:
    """Open the training split of a data set, or all of it, and the validation split.

    Args:
        data: As for `open_dataset`.
        train_split: Name of the training split.
        val_split: Name of the validation split.
        seed: Seed of the order of shards.
        **options: Further options of `open_dataset`.

    Returns:
        Both; the second is None if the data set has only one split, which then has an index.

    Raises:
        ValueError: If a split cannot be opened, a class has no images, or the classes of the two differ.
    """
    root = _root(data, options.get('data_dir'))
    if train_split == val_split:
        raise ValueError(f'The split {val_split} cannot be used for both training and validation: name two splits.')
    if root is not None and root.is_dir():
        parts = _require_two_parts(root, train_split, val_split)
        if root == Path(data):  # torchvision checks its own
            for part in parts:
                require_no_empty_class(part)
    train = open_dataset(data, split=train_split, seed=seed, is_training=True, **options)
    val, missing = None, None
    if root is None or _part(root, val_split, _VAL_FOLDERS):
        try:
            val = open_dataset(data, split=val_split, seed=seed, **options)
        except ValueError as error:
            missing = error
    if val is None and (isinstance(train, ImageStream) or (root is not None and missing)):
        raise missing or ValueError(f'{data} has no split {val_split}.')
    names, val_names = train.class_names(), None if val is None else val.class_names()
    if names is not None and val_names is not None and names != val_names:
        raise ValueError(_difference(names, val_names))
    return train, val


def split_indices(targets: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the indices of labels in two ascending parts, of which the second has a fraction of each class.

    A class with a single image has it in the first part.

    Raises:
        ValueError: If the fraction is not above 0 and below 1, or the second part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction}.')
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(targets):
        by_class[label].append(index)
    stream = np.random.RandomState(np.random.PCG64(seed))
    second: set[int] = set()
    for label in sorted(by_class):
        members = by_class[label]
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second.update(members[position] for position in stream.permutation(len(members))[:count])
    if not second:
        raise ValueError(
            f'Cannot hold out validation images from {len(targets)} image{"s" * (len(targets) != 1)} with at most one '
            'per class: add images, or name a validation split.'
        )
    return [index for index in range(len(targets)) if index not in second], sorted(second)


def _root(data: str, data_dir: str | None) -> Path | None:
    """The folder or tar of a data set; None if it is named."""
    prefix, _, name = data.partition('/')
    if Path(data).exists() or prefix.lower() not in (*MAP_PREFIXES, *STREAM_PREFIXES):
        return Path(data)
    return Path(data_dir or '.') if (prefix.lower(), name.lower()) in _TORCH_FOLDERS else None


def _part(root: Path, split: str, synonyms: Sequence[str]) -> Path | None:
    """The folder of a split inside a data set's."""
    names = (split, *synonyms) if split in synonyms else (split,)
    return next((root / name for name in names if (root / name).is_dir()), None)


def _require_two_parts(root: Path, train_split: str, val_split: str) -> list[Path]:
    """Check that no image is in both splits; returns their folders, or the whole folder."""
    train, val = _part(root, train_split, _TRAIN_FOLDERS), _part(root, val_split, _VAL_FOLDERS)
    if val is not None and train is None:  # timm would train on the whole folder, with the validation images
        raise ValueError(f'{root} has a folder {val.name}, but no {train_split}: name the training split.')
    if val is not None and val == train:
        raise ValueError(f'{val} cannot be used for both training and validation: name another validation split.')
    return [train or root] if val is None else [train or root, val]


def require_no_empty_class(root: Path) -> None:
    """Check that each class of a folder has images.

    Raises:
        ValueError: If one has none.
    """
    endings = get_img_extensions()
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.')):
        files = (name for *_, names in os.walk(folder, followlinks=True) for name in names)
        if not any(Path(name).suffix.lower() in endings for name in files):
            raise ValueError(
                f'{folder}: the class has no images ({", ".join(endings)}). Add some, or remove the folder.'
            )


def _count_classes(*parts: ImageDataset | ImageStream) -> int | None:
    if any(isinstance(part, ImageStream) for part in parts):
        return None
    return max(max(part.targets()) for part in parts) + 1  # type: ignore[union-attr]


def _difference(train: list[str], val: list[str]) -> str:
    only = []
    for part, names in (('training', {*train} - {*val}), ('validation', {*val} - {*train})):
        if names:
            listed = sorted(names)
            more = f' and {len(listed) - 5} more' if len(listed) > 5 else ''
            only.append(f'only in {part}: {", ".join(listed[:5])}{more}')
    return f'The classes of the two splits differ, {"; ".join(only) or "in their order"}: use the same folders.'
