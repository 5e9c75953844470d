"""Images with labels, from whatever `timm.data.create_dataset` opens, and the loaders over them."""

from .datasets import ImageDataset, ImageStream, SyntheticImages, open_dataset
from .images import UnreadableSampleError
from .loading import Batch, Loader, TrainBatches, eval_loader, normalizer, seed_everything, seed_of, train_loader
from .splits import Splits, cut, open_parts, open_splits

__all__ = [
    'Batch',
    'ImageDataset',
    'ImageStream',
    'Loader',
    'Splits',
    'SyntheticImages',
    'TrainBatches',
    'UnreadableSampleError',
    'cut',
    'eval_loader',
    'normalizer',
    'open_dataset',
    'open_parts',
    'open_splits',
    'seed_everything',
    'seed_of',
    'train_loader',
]
