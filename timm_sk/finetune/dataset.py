"""The data that the settings name."""

from .. import shapes
from ..data import Splits, SyntheticPictures, cut, open_splits
from .config import Config

_LEAST_JUDGING = 0.25  # of drawn pictures, of which there are few


def open_data(config: Config) -> Splits:
    """Open what is trained on and what judges it, or draw both.

    Raises:
        ValueError: If no data is named, or `timm_sk.data.open_splits` refuses it.
    """
    mode = 'L' if config.in_chans == 1 else 'RGB'
    if config.synthetic:
        return _drawn(config, mode)
    if not config.data:
        raise ValueError('Name the data: a folder of pictures, hfds/NAME, … or --synthetic 64 to try a run.')
    return open_splits(
        config.data,
        train_split=config.train_split,
        val_split=config.val_split,
        val_fraction=config.val_fraction,
        num_classes=config.num_classes,
        seed=config.seed,
        data_dir=config.data_dir,
        mode=mode,
        class_map=config.class_map,
        download=config.dataset_download,
        batch_size=config.batch_size,
        num_samples=config.num_samples,
    )


def _drawn(config: Config, mode: str) -> Splits:
    drawn = SyntheticPictures(config.synthetic, seed=config.seed, size=config.img_size or 32, mode=mode)
    names = [*shapes.CLASS_NAMES]
    train, val = cut(drawn.targets(), max(config.val_fraction, _LEAST_JUDGING), config.seed)
    return Splits(
        train=drawn.subset(train), val=drawn.subset(val), class_names=names, num_classes=len(names), was_cut=True
    )
