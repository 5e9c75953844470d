"""The data that the settings name."""

from typing import Any

from ..data import ImageDataset, ImageStream, Splits, SyntheticImages, open_parts, open_splits, shapes, split_indices
from .config import Config

_MIN_SYNTHETIC_FRACTION = 0.25  # of validation images, as there are few


def open_data(config: Config) -> Splits:
    """Open the training and validation images, or draw both.

    Raises:
        ValueError: If no data is named, or `timm_sk.data.open_splits` refuses it.
    """
    if not config.synthetic:
        return open_splits(
            config.data, val_fraction=config.val_fraction, num_classes=config.num_classes, **_options(config)
        )
    images, names = _synthetic(config), [*shapes.CLASS_NAMES]
    fraction = max(config.val_fraction, _MIN_SYNTHETIC_FRACTION)
    train, val = (images.subset(indices) for indices in split_indices(images.targets(), fraction, config.seed))
    return Splits(train=train, val=val, class_names=names, num_classes=len(names), was_cut=True)


def open_unsplit(config: Config) -> dict[str, ImageDataset | ImageStream]:
    """Open the parts of the data set: `train` and `validation`, or `all`.

    Raises:
        ValueError: If no data is named, or `timm_sk.data.open_parts` refuses it.
    """
    if config.synthetic:
        return {'all': _synthetic(config)}
    train, val = open_parts(config.data, **_options(config))
    return {'all': train} if val is None else {'train': train, 'validation': val}


def _options(config: Config) -> dict[str, Any]:
    if not config.data:
        raise ValueError('No data: name a folder of images, hfds/NAME, …, or pass --synthetic 64 for a smoke test.')
    return dict(
        train_split=config.train_split,
        val_split=config.val_split,
        seed=config.seed,
        data_dir=config.data_dir,
        mode=_mode(config),
        class_map=config.class_map,
        download=config.dataset_download,
        batch_size=config.batch_size,
        num_samples=config.num_samples,
    )


def _mode(config: Config) -> str:
    return 'L' if config.in_chans == 1 else 'RGB'


def _synthetic(config: Config) -> SyntheticImages:
    return SyntheticImages(config.synthetic, seed=config.seed, size=config.img_size or 32, mode=_mode(config))
