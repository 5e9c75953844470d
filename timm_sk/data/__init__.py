"""Images with labels, from whatever `timm.data.create_dataset` opens, and the loaders over them."""

from .datasets import ImageDataset, ImageStream, SyntheticImages, open_dataset
from .images import UnreadableSampleError
from .loading import Batch, Loader, TrainBatches, eval_loader, normalizer, seed_everything, seed_of, train_loader
from .splits import Splits, open_parts, open_splits, split_indices

__all__ = [
    'Batch',
    'ImageDataset',
    'ImageStream',
    'Loader',
    'Splits',
    'SyntheticImages',
    'TrainBatches',
    'UnreadableSampleError',
    'eval_loader',
    'normalizer',
    'open_dataset',
    'open_parts',
    'open_splits',
    'seed_everything',
    'seed_of',
    'split_indices',
    'train_loader',
]
