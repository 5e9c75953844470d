"""Settings of a validation: one flat dataclass, whose fields are the command's options."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

LABELS = ('real', 'v2', 'a', 'r')  # see imagenet_labels.py
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
AMP_DTYPES = ('bfloat16', 'float16')


def _of(default: Any, text: str) -> Any:
    return field(default=default, metadata=dict(help=text))


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Settings of one validation; the help texts say what each field is."""

    data: str = _of(dataclasses.MISSING, 'Folder or tar of images, or torch/, hfds/, wds/, hfids/, tfds/…')
    split: str = _of('validation', 'Split to evaluate on.')
    data_dir: str | None = _of(None, 'Folder where named data sets are stored.')
    dataset_download: bool = _of(False, 'Download the data set if it is missing.')
    class_map: str | None = _of(None, 'File with the names of the classes.')
    timm_reader: bool = _of(False, "Find and read images as timm's validate.py does.")
    num_samples: int | None = _of(None, 'Number of images, for streams of unknown length.')
    max_bad_images: int = _of(0, 'Number of unreadable images to skip before it stops.')
    labels: str | None = _of(None, f"ImageNet labels other than the data set's: {', '.join(LABELS)}.")
    real_json: str | None = _of(None, "File of ReaL labels instead of timm's.")
    checkpoint: str | None = _of(None, "File of weights instead of the model's own.")
    use_ema: bool = _of(False, 'Use the averaged weights in --checkpoint, if it has any.')
    num_classes: int | None = _of(None, "Number of classes of --checkpoint; the architecture's by default.")
    img_size: int | None = _of(None, "Height and width of the input; the checkpoint's by default.")
    crop_pct: float | None = _of(None, "Fraction of the shorter side that the crop keeps; the checkpoint's by default.")
    interpolation: str | None = _of(None, f"{', '.join(INTERPOLATIONS)}; the checkpoint's by default.")
    use_train_size: bool = _of(False, "Use the checkpoint's size and crop of training.")
    reparam: bool = _of(False, 'Reparameterize the model.')
    channels_last: bool | None = _of(None, 'Channels-last memory format; on CUDA by default.')
    amp: bool = _of(False, 'Mixed precision.')
    amp_dtype: str = _of('bfloat16', f'Dtype of mixed precision: {" or ".join(AMP_DTYPES)}.')
    batch_size: int = _of(64, 'Batch size of one process.')
    workers: int = _of(2, 'Number of data loading workers per process.')
    retry: bool = _of(False, 'Retry with smaller batches when out of memory.')

    def __post_init__(self) -> None:
        for name in ('batch_size', 'num_samples', 'num_classes', 'img_size'):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, 'above 0')
        for name in ('workers', 'max_bad_images'):
            self._require(name, getattr(self, name) >= 0, 'at least 0')
        self._require('crop_pct', self.crop_pct is None or 0 < self.crop_pct <= 1, 'above 0 and at most 1')
        known = ', '.join(INTERPOLATIONS)
        self._require('interpolation', self.interpolation in (None, *INTERPOLATIONS), f'one of {known}')
        self._require('amp_dtype', self.amp_dtype in AMP_DTYPES, ' or '.join(AMP_DTYPES))
        self._require('labels', self.labels in (None, *LABELS), f'one of {", ".join(LABELS)}')
        for name in ('num_classes', 'use_ema'):
            if getattr(self, name) and not self.checkpoint:
                raise ValueError(f'{name} needs a file of weights: name it with --checkpoint.')

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f'{name} must be {rule}, got {getattr(self, name)!r}.')
