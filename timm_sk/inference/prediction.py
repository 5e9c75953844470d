"""Classify picture files with a model: label names and probabilities."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import timm.data
import torch

from ..data.images import read_image
from ..errors import UnreadableImageError
from ..pretrained import bundled_folder
from ..registry import pretrained_cfg

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one picture, best first, or why it could not be read.

    Attributes:
        path: The file.
        labels: Names of the classes; empty where there is an error.
        probabilities: Their probabilities, 0 to 1.
        error: What is wrong with the file, naming it; None if nothing is.
    """

    path: Path
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def class_names(model: Any) -> list[str]:
    """Names of a model's classes: its checkpoint's, ImageNet's if there are as many, else numbers."""
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
    """Classify files one batch at a time, in their order, with the preprocessing of the model's checkpoint.

    Args:
        model: A classifier of timm in eval mode, on any device.
        paths: Picture files; those that cannot be read yield a prediction with an error.
        topk: How many classes to name, at most all.

    Raises:
        ValueError: If the model has no classifier, or takes pictures of neither 1 nor 3 channels.
    """
    names = class_names(model)
    if not names:
        raise ValueError('The model has no classifier: create it with num_classes above 0.')
    channels = model.in_chans
    if channels not in (1, 3):
        raise ValueError(f'Pictures have 1 or 3 channels, the model takes {channels}: create it with in_chans=3.')
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    parameter = next(model.parameters())
    remaining = iter(paths)
    while batch := list(islice(remaining, BATCH_SIZE)):
        pictures, errors = {}, {}
        for index, path in enumerate(batch):
            try:
                pictures[index] = transform(read_image(path).convert('L' if channels == 1 else 'RGB'))
            except UnreadableImageError as error:
                errors[index] = Prediction(path=path, error=str(error))
        read = {}
        if pictures:
            logits = model(torch.stack(list(pictures.values())).to(parameter.device, parameter.dtype))
            best = logits.float().softmax(dim=1).topk(min(topk, logits.shape[1]))
            for index, probabilities, classes in zip(
                pictures, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                labels = tuple(names[label] for label in classes)
                read[index] = Prediction(path=batch[index], labels=labels, probabilities=tuple(probabilities))
        for index in range(len(batch)):
            yield errors[index] if index in errors else read[index]


def example_images(name: str) -> list[Path]:
    """The example pictures that ship with a checkpoint, each named after its true label; none if it ships with none.

    Args:
        name: Architecture, for its default checkpoint, or `arch.tag`.

    Raises:
        UnknownModelError: If timm's registry has no such name.
    """
    if ':' in name:
        return []
    cfg = pretrained_cfg(name)
    name = f'{cfg.architecture}.{cfg.tag}'
    return sorted((bundled_folder(name) / 'examples').glob('*.png'))
