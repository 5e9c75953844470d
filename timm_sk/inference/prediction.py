"""Classify image files with a model: label names and probabilities."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import timm.data
import torch
from torch import Tensor

from ..checkpoints import CHECKPOINTS
from ..data import create_transform, normalizer
from ..data.images import read_image
from ..errors import TimmSkError, UnreadableImageError
from ..models.inputs import preprocessing
from ..pretrained import bundled_folder
from ..registry import pretrained_cfg, require_model

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of an image, or the reason why it could not be read.

    Attributes:
        path: Path of the image.
        labels: Names of the classes, most likely first; empty if there is an error.
        probabilities: Probabilities of the classes, 0 to 1.
        error: Error message, which names the file; None if the image was read.
    """

    path: Path
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def class_names(model: Any) -> list[str]:
    """Names of a model's classes: its checkpoint's, ImageNet's if the number of classes is the same, else numbers."""
    cfg: dict[str, Any] = model.pretrained_cfg
    labels = cfg.get('label_names') or ()
    if len(labels) == model.num_classes:
        described = cfg.get('label_descriptions') or {}
        return [described.get(label, label) for label in labels]
    subset = timm.data.infer_imagenet_subset(model)
    if subset:
        info = timm.data.ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(model.num_classes)]
    return [str(index) for index in range(model.num_classes)]


@torch.inference_mode()
def predict(model: Any, paths: Iterable[Path], *, topk: int = 5) -> Iterator[Prediction]:
    """Classify image files batch by batch, in their order, with the preprocessing of the model's checkpoint.

    Args:
        model: Classifier of timm in eval mode, on any device.
        paths: Image files; an unreadable one yields a prediction with an error.
        topk: Number of classes to name, at most all.

    Raises:
        ValueError: If the model has no classifier.
    """
    names = class_names(model)
    if not names:
        raise TimmSkError('The model has no classifier.', in_python='Create it with num_classes above 0.')
    inputs = preprocessing(model, any_channels=True)
    transform, channels, parameter = create_transform(**inputs), inputs['input_size'][0], next(model.parameters())
    prepare = normalizer(inputs['mean'], inputs['std'], parameter.device)
    remaining = iter(paths)
    while batch := list(islice(remaining, BATCH_SIZE)):
        images: dict[int, Tensor] = {}
        predictions: dict[int, Prediction] = {}
        for index, path in enumerate(batch):
            try:
                images[index] = torch.as_tensor(transform(read_image(path, channels)))
            except UnreadableImageError as error:
                predictions[index] = Prediction(path=path, error=str(error))
        if images:
            logits = model(prepare(torch.stack([*images.values()])).to(parameter))
            best = logits.float().softmax(dim=1).topk(min(topk, logits.shape[1]))
            for index, probabilities, classes in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
                labels = tuple(names[label] for label in classes)
                predictions[index] = Prediction(path=batch[index], labels=labels, probabilities=tuple(probabilities))
        yield from (predictions[index] for index in range(len(batch)))


def example_images(name: str) -> list[Path]:
    """The example images that ship with a checkpoint, if any, each named after its true label.

    Args:
        name: Architecture, for its default checkpoint, or `arch.tag`; a folder or repository has none.

    Raises:
        UnknownModelError: If timm's registry has no such name.
    """
    if ':' in require_model(name):
        return []
    cfg = pretrained_cfg(name)
    name = f'{cfg.architecture}.{cfg.tag}'
    return sorted((bundled_folder(name) / 'examples').glob('*.png'))


def trained_on(model: Any) -> str:
    """A sentence on the data set that a model's weights were trained on; empty if the table does not name it."""
    cfg = model.pretrained_cfg
    row = CHECKPOINTS.get(f'{cfg.get("architecture")}.{cfg.get("tag")}')
    return f'{row.name} was trained on {row.trained_on}.' if row and row.trained_on else ''
