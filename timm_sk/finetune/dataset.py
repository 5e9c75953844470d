"""The data that the settings name."""

from typing import Any

from ..data import ImageDataset, ImageStream, Splits, SyntheticImages, cut, open_parts, open_splits, shapes
from .config import Config

_LEAST_JUDGING = 0.25  # of drawn images, of which there are few


def open_data(config: Config) -> Splits:
    """Open what is trained on and what judges it, or draw both.

    Raises:
        ValueError: If no data is named, or `timm_sk.data.open_splits` refuses it.
    """
    if config.synthetic:
        return _halves(_drawn(config), config)
    return open_splits(
        _named(config), val_fraction=config.val_fraction, num_classes=config.num_classes, **_options(config)
    )


def open_uncut(config: Config) -> dict[str, ImageDataset | ImageStream]:
    """Open the parts that the data set has: `train` and `validation`, or `all`.

    Raises:
        ValueError: If no data is named, or `timm_sk.data.open_parts` refuses it.
    """
    if config.synthetic:
        return {'all': _drawn(config)}
    train, val = open_parts(_named(config), **_options(config))
    return {'all': train} if val is None else {'train': train, 'validation': val}


def _named(config: Config) -> str:
    if not config.data:
        raise ValueError('Name the data: a folder of images, hfds/NAME, … or --synthetic 64 to try a run.')
    return config.data


def _options(config: Config) -> dict[str, Any]:
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


def _drawn(config: Config) -> SyntheticImages:
    return SyntheticImages(config.synthetic, seed=config.seed, size=config.img_size or 32, mode=_mode(config))


def _halves(drawn: SyntheticImages, config: Config) -> Splits:
    names = [*shapes.CLASS_NAMES]
    train, val = cut(drawn.targets(), max(config.val_fraction, _LEAST_JUDGING), config.seed)
    return Splits(
        train=drawn.subset(train), val=drawn.subset(val), class_names=names, num_classes=len(names), was_cut=True
    )
