"""Images with labels, from whatever `timm.data.create_dataset` opens, and the loaders over them."""

from .datasets import ImageDataset, ImageStream, SyntheticImages, open_dataset, with_channels
from .identity import fingerprint
from .images import UnreadableSampleError
from .loading import Batch, Loader, TrainBatches, eval_loader, normalizer, seed_of, train_loader
from .splits import Splits, make_splits, open_parts
from .transforms import create_transform, input_transform

__all__ = [
    'Batch',
    'ImageDataset',
    'ImageStream',
    'Loader',
    'Splits',
    'SyntheticImages',
    'TrainBatches',
    'UnreadableSampleError',
    'create_transform',
    'eval_loader',
    'fingerprint',
    'input_transform',
    'make_splits',
    'normalizer',
    'open_dataset',
    'open_parts',
    'seed_of',
    'train_loader',
    'with_channels',
]
