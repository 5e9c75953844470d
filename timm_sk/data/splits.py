"""The two parts of a data set: what is trained on, and what judges it."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import get_img_extensions

from .datasets import MAP_PREFIXES, STREAM_PREFIXES, ImageDataset, ImageStream, open_dataset

_TRAIN_FOLDERS = ('train', 'training')  # as `timm.data.create_dataset` looks for them
_VAL_FOLDERS = ('val', 'valid', 'validation', 'eval', 'evaluation')
_TORCH_FOLDERS = (('torch', 'image_folder'), ('torch', 'folder'))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What is trained on, what judges it, and their classes.

    Attributes:
        train: The training images.
        val: The validation images; none of them is among the former.
        class_names: By index; None where the data set has no names.
        num_classes: How many.
        was_cut: Whether the data set had one part only, from which the validation images were cut.
    """

    train: ImageDataset | ImageStream
    val: ImageDataset | ImageStream
    class_names: list[str] | None
    num_classes: int
    was_cut: bool


def open_splits(
    data: str,
    *,
    train_split: str = 'train',
    val_split: str = 'validation',
    val_fraction: float = 0.1,
    num_classes: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Splits:
    """Open the training and the validation part of a data set; where it has one part only, cut it.

    Args:
        data: As for `open_dataset`.
        train_split: Name of the former.
        val_split: Name of the latter.
        val_fraction: Share of the images that judge, where a part has to be cut off.
        num_classes: How many classes there should be; as many as there are if not given.
        seed: Of the cut, and of the order of shards.
        **options: Further ones of `open_dataset`.

    Raises:
        ValueError: If a part cannot be opened, a class has no images, the classes of the two differ, or there are
            too few images to cut.
    """
    train, val = open_parts(data, train_split=train_split, val_split=val_split, seed=seed, **options)
    was_cut = val is None
    if val is None:
        first, second = split_indices(train.targets(), val_fraction, seed)  # type: ignore[union-attr]
        train, val = train.subset(first), train.subset(second)  # type: ignore[union-attr]
    names = train.class_names()
    found = len(names) if names is not None else _highest(train, val)
    if num_classes is not None and found is not None and num_classes != found:
        raise ValueError(
            f'num_classes is {num_classes}, but {data} has {found} classes: leave it out, or mend the data.'
        )
    count = num_classes or found
    if count is None:
        raise ValueError(f'{data} does not tell how many classes it has: pass --num-classes.')
    return Splits(train=train, val=val, class_names=names, num_classes=count, was_cut=was_cut)


def open_parts(
    data: str, *, train_split: str = 'train', val_split: str = 'validation', seed: int = 0, **options: Any
) -> tuple[ImageDataset | ImageStream, ImageDataset | ImageStream | None]:
    """Open the parts that a data set has: the training one, or all of it, and the validation one.

    Args:
        data: As for `open_dataset`.
        train_split: Name of the former.
        val_split: Name of the latter.
        seed: Of the order of shards.
        **options: Further ones of `open_dataset`.

    Returns:
        Both; the second is None where the data set has one part only, which has numbered images.

    Raises:
        ValueError: If a part cannot be opened, a class has no images, or the classes of the two differ.
    """
    root = _root(data, options.get('data_dir'))
    if train_split == val_split:
        raise ValueError(f'The split {val_split} cannot both be trained on and judge: name two splits.')
    if root is not None and root.is_dir():
        parts = _require_two_parts(root, train_split, val_split)
        if root == Path(data):  # torchvision checks its own
            _require_filled_classes(parts)
    train = open_dataset(data, split=train_split, seed=seed, is_training=True, **options)
    val = _open_val(data, train, val_split, seed, root, options)
    names, val_names = train.class_names(), None if val is None else val.class_names()
    if names is not None and val_names is not None and names != val_names:
        raise ValueError(_difference(names, val_names))
    return train, val


def split_indices(targets: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Cut indices in two so that each class has the same share in both, as near as its count allows.

    Args:
        targets: The label of each image.
        fraction: Share of the second part, above 0 and below 1.
        seed: Of the choice.

    Returns:
        Ascending indices of the first and of the second part. A class with one image has it in the first.

    Raises:
        ValueError: If the fraction is no such share, or the second part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction}.')
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(targets):
        by_class[label].append(index)
    stream = np.random.RandomState(np.random.PCG64(seed))
    judging: list[int] = []
    for label in sorted(by_class):
        members = by_class[label]
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        judging += [members[position] for position in stream.permutation(len(members))[:count]]
    if not judging:
        raise ValueError(
            f'{len(targets)} image{"s" * (len(targets) != 1)}, no more than one of a class, cannot be cut into a '
            'part to train on and one to judge by: add images, or name a validation split.'
        )
    held = set(judging)
    return [index for index in range(len(targets)) if index not in held], sorted(held)


def _root(data: str, data_dir: str | None) -> Path | None:
    """The folder or tar, if that is what the data set is; None if it has a name."""
    prefix, _, name = data.partition('/')
    if Path(data).exists() or prefix.lower() not in (*MAP_PREFIXES, *STREAM_PREFIXES):
        return Path(data)
    return Path(data_dir or '.') if (prefix.lower(), name.lower()) in _TORCH_FOLDERS else None


def _open_val(
    data: str,
    train: ImageDataset | ImageStream,
    split: str,
    seed: int,
    root: Path | None,
    options: dict[str, Any],
) -> ImageDataset | ImageStream | None:
    """The validation part; None if it would have to be cut off."""
    missing: Exception | None = None
    if root is None or _part(root, split, _VAL_FOLDERS):
        try:
            return open_dataset(data, split=split, seed=seed, **options)
        except ValueError as error:
            missing = error
    if isinstance(train, ImageStream) or (root is not None and missing):
        raise missing or ValueError(f'{data} has no split {split}.')
    return None


def _part(root: Path, split: str, synonyms: Sequence[str]) -> Path | None:
    """The folder of a split inside a data set's."""
    names = (split, *synonyms) if split in synonyms else (split,)
    return next((root / name for name in names if (root / name).is_dir()), None)


def _require_two_parts(root: Path, train_split: str, val_split: str) -> list[Path]:
    """Check that no image is in both parts; gives the folders of the parts that are there, or the whole."""
    train, val = _part(root, train_split, _TRAIN_FOLDERS), _part(root, val_split, _VAL_FOLDERS)
    if val is not None and train is None:  # timm would take the whole folder instead, the validation images too
        raise ValueError(f'{root} has a folder {val.name}, but none called {train_split}: name what to train on.')
    if val is not None and val == train:
        raise ValueError(f'{val} cannot both be trained on and judge: name another validation split.')
    return [train or root] if val is None else [train or root, val]


def _require_filled_classes(parts: Sequence[Path]) -> None:
    known = get_img_extensions()
    for part in parts:
        for folder in sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith('.')):
            files = (name for *_, names in os.walk(folder, followlinks=True) for name in names)
            if not any(Path(name).suffix.lower() in known for name in files):
                raise ValueError(
                    f'{folder}: the class has no images ({", ".join(known)}). Add some, or remove the folder.'
                )


def _highest(*parts: ImageDataset | ImageStream) -> int | None:
    if any(isinstance(part, ImageStream) for part in parts):
        return None
    return max(max(part.targets()) for part in parts) + 1  # type: ignore[union-attr]


def _difference(train: list[str], val: list[str]) -> str:
    def few(names: set[str]) -> str:
        listed = sorted(names)
        return ', '.join(listed[:5]) + (f' and {len(listed) - 5} more' if len(listed) > 5 else '')

    only = [
        f'only in {part}: {few(names)}'
        for part, names in (('training', {*train} - {*val}), ('validation', {*val} - {*train}))
        if names
    ]
    return f'The classes of the two parts differ, {"; ".join(only) or "in their order"}: give both the same folders.'
