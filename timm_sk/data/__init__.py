"""Pictures with labels, from whatever `timm.data.create_dataset` opens, and the loaders over them."""

from .datasets import Pictures, PictureStream, SyntheticPictures, open_pictures
from .images import UnreadableSampleError
from .loading import Batch, Loader, TrainBatches, eval_loader, normalizer, seed_everything, seed_of, train_loader
from .splits import Splits, cut, open_parts, open_splits

__all__ = [
    'Batch',
    'Loader',
    'PictureStream',
    'Pictures',
    'Splits',
    'SyntheticPictures',
    'TrainBatches',
    'UnreadableSampleError',
    'cut',
    'eval_loader',
    'normalizer',
    'open_parts',
    'open_pictures',
    'open_splits',
    'seed_everything',
    'seed_of',
    'train_loader',
]
