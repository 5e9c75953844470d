"""The embeddings of a data set, for people who want features alone."""

from functools import partial
from pathlib import Path

from ..data import Pictures, normalizer
from ..world import joined
from .config import Config
from .dataset import open_uncut
from .features import write_features
from .model import build_model
from .preprocessing import data_config_of, transforms_of
from .trainee import autocast_of


def extract(config: Config) -> Path:
    """Write the embeddings of all pictures; under torchrun its processes share them.

    A data set with two parts gives two folders, `train` and `validation`; one with no validation part gives one,
    `all`. What an earlier call has written is not computed again.

    Args:
        config: The settings, of which `features` names the folder.

    Returns:
        The folder.

    Raises:
        ValueError: If the data or the model do not fit, or the folder holds others' embeddings.
        OSError: If it cannot be written.
    """
    root = Path(config.features or '')
    with joined(config.device) as world:
        opening = partial(open_uncut, config)
        parts = world.first_alone(opening) if config.dataset_download else opening()
        model = build_model(config, 0)
        data_config = data_config_of(config, model)
        judging = transforms_of(config, data_config)[1]
        model.to(world.device).eval()
        for name, pictures in parts.items():
            if not isinstance(pictures, Pictures):
                raise ValueError('Embeddings are written of pictures that have numbers; a stream of shards has none.')
            write_features(
                model,
                pictures,
                judging,
                folder=root / name,
                world=world,
                prepare=normalizer(data_config['mean'], data_config['std'], world.device),
                batch_size=config.batch_size,
                workers=config.workers,
                form=config.features_format,
                autocast=autocast_of(config, world.device),
                source=f'{config.data or "synthetic"} {name}' + (f' in {config.amp_dtype}' if config.amp else ''),
                max_bad=config.max_bad_images,
            )
    return root
