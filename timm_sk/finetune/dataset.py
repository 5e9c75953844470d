"""The data that the settings name."""

from .. import data
from ..data import ImageDataset, ImageStream, Splits, SyntheticImages
from .config import Config

_MIN_SYNTHETIC_FRACTION = 0.25  # of validation images, as there are few


def open_splits(config: Config) -> Splits:
    """Open the training and validation images, or draw both.

    Raises:
        ValueError: If no data is named, it cannot be opened, or its classes do not fit.
    """
    train, val = open_parts(config)
    fraction = max(config.val_fraction, _MIN_SYNTHETIC_FRACTION) if config.synthetic else config.val_fraction
    num_classes = None if config.synthetic else config.num_classes
    return data.make_splits(train, val, val_fraction=fraction, num_classes=num_classes, seed=config.seed)


def open_parts(config: Config) -> tuple[ImageDataset | ImageStream, ImageDataset | ImageStream | None]:
    """Open the training images, or all, and the validation images, if the data set has them.

    Raises:
        ValueError: If no data is named, or it cannot be opened.
    """
    if config.synthetic:
        return SyntheticImages(config.synthetic, seed=config.seed, size=config.img_size or 32), None
    if not config.data:
        raise ValueError('No data: name a folder of images, hfds/NAME, …, or pass --synthetic 64 for a smoke test.')
    return data.open_parts(
        config.data,
        train_split=config.train_split,
        val_split=config.val_split,
        seed=config.seed,
        data_dir=config.data_dir,
        class_map=config.class_map,
        download=config.dataset_download,
        batch_size=config.batch_size,
        num_samples=config.num_samples,
    )
