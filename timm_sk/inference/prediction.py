"""Predictions and embeddings of images: label names and probabilities, pooled features."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor

from ..checkpoints import CHECKPOINTS
from ..data import input_transform
from ..data.images import find_images, read_image, to_channels
from ..errors import TimmSkError, UnreadableImageError
from ..models.inputs import preprocessing
from ..models.modes import eval_mode
from ..pretrained import bundled_folder
from ..registry import pretrained_cfg, require_model

BATCH_SIZE = 32

ImageLike = str | Path | Image.Image | Tensor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of an image, or the reason why it could not be read.

    Attributes:
        path: Path of the image; None if it was not given by its path.
        classes: Indices of the classes, most likely first; empty if there is an error.
        labels: Names of these classes.
        probabilities: Probabilities of these classes, 0 to 1.
        error: Error message, which names the file; None if the image was read.
    """

    path: Path | None = None
    classes: tuple[int, ...] = ()
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


def predict(model: Any, images: ImageLike | Iterable[ImageLike], *, topk: int = 5) -> list[Prediction]:
    """Classify images with the preprocessing of the model's checkpoint.

    Args:
        model: Classifier of timm, such as `timm_sk.load` returns, on any device, or a model of `deploy`, `quantize` or
            `load_deployed`; it is called in eval mode and left in its own.
        images: One image or several: paths, PIL images of any mode, or float tensors [C, H, W] that the model's
            transform made; a tensor [N, C, H, W] is N images. A single path may be a folder or a pattern such as
            `photos/*.jpg`.
        topk: Number of classes to name, at most all.

    Returns:
        A prediction for each image, in their order.

    Raises:
        UnreadableImageError: If an image cannot be read.
        ValueError: If the model has no classifier, or a tensor is not an input of the model.

    Examples:
        >>> model, _ = timm_sk.load('skresnet34')
        >>> prediction = timm_sk.predict(model, 'cat.jpg')[0]
        >>> prediction.labels[0], prediction.probabilities[0]
    """
    predictions = []
    for prediction in iter_predictions(model, _listed(images), topk=topk):
        if prediction.error:
            raise UnreadableImageError(prediction.error)
        predictions.append(prediction)
    return predictions


def embed(model: Any, images: ImageLike | Iterable[ImageLike]) -> Tensor:
    """Pooled features of images, which the classifier takes, with the preprocessing of the model's checkpoint.

    Args:
        model: Model of timm with or without a classifier, on any device; it is called in eval mode and left in its own.
        images: As for `predict`.

    Returns:
        Embeddings [N, D], float32, on the CPU.

    Raises:
        UnreadableImageError: If an image cannot be read.
        ValueError: If there are no images, the model has no pooled features, or a tensor is not an input of the model.

    Examples:
        >>> model, _ = timm_sk.load('skresnet34')
        >>> timm_sk.embed(model, ['cat.jpg', 'dog.jpg']).shape  # [2, 512]
    """
    if not hasattr(model, 'forward_head'):
        raise ValueError(f'{type(model).__name__} has no pooled features: load the model without features_only.')
    embeddings = []
    for _, errors, inputs in _batches(model, _listed(images)):
        if errors:
            raise UnreadableImageError(next(iter(errors.values())))
        with eval_mode(model), torch.no_grad():
            embeddings.append(pooled_features(model, inputs).cpu())
    if not embeddings:
        raise ValueError('No images: pass at least one.')
    return torch.cat(embeddings)


def pooled_features(model: Any, x: Tensor) -> Tensor:
    """The features that a model's classifier takes, float32 [B, D], of normalized images [B, C, H, W]."""
    return model.forward_head(model.forward_features(x), pre_logits=True).float()


def iter_predictions(model: Any, images: Iterable[ImageLike], *, topk: int = 5) -> Iterator[Prediction]:
    """Classify images batch by batch, as `predict`; an unreadable image yields a prediction with an error.

    Raises:
        ValueError: If the model has no classifier, or a tensor is not an input of the model.
    """
    names = class_names(model)
    if not names:
        raise TimmSkError('The model has no classifier.', in_python='Create it with num_classes above 0.')
    for batch, errors, inputs in _batches(model, images):
        found: Iterator[tuple[list[float], list[int]]] = iter(())
        if len(inputs):
            with eval_mode(model), torch.inference_mode():
                best = model(inputs).float().softmax(dim=1).topk(min(topk, len(names)))
            found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        for index, image in enumerate(batch):
            path = Path(image) if isinstance(image, str | Path) else None
            if index in errors:
                yield Prediction(path=path, error=errors[index])
                continue
            probabilities, classes = next(found)
            labels = tuple(names[index] for index in classes)
            yield Prediction(path=path, classes=tuple(classes), labels=labels, probabilities=tuple(probabilities))


def _batches(model: Any, images: Iterable[ImageLike]) -> Iterator[tuple[list[ImageLike], dict[int, str], Tensor]]:
    """Batches of images, errors of the unreadable ones by their place, and inputs [B, C, H, W] of the others."""
    settings = preprocessing(model, any_channels=True)
    parameter = next(model.parameters(), torch.empty(0))  # exported models have none, and run on the CPU in float32
    channels, transform = settings['input_size'][0], input_transform(**settings)
    remaining = iter(images)
    while batch := list(islice(remaining, BATCH_SIZE)):
        errors: dict[int, str] = {}
        inputs: list[Tensor] = []
        for index, image in enumerate(batch):
            if isinstance(image, Tensor):
                inputs.append(_require_input(image, channels))
            elif isinstance(image, Image.Image):
                inputs.append(transform(to_channels(image, channels)))
            else:
                try:
                    inputs.append(transform(read_image(Path(image), channels)))
                except UnreadableImageError as error:
                    errors[index] = str(error)
        if len({x.shape for x in inputs}) > 1:
            raise ValueError('The tensors are of several sizes: pass those of one size, or PIL images.')
        yield batch, errors, torch.stack([x.to(parameter) for x in inputs]) if inputs else torch.empty(0)


def _listed(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(images, str | Path):
        return find_images([str(images)])
    if isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.ndim < 4):
        return [images]
    return images


def _require_input(x: Tensor, channels: int) -> Tensor:
    if x.ndim != 3 or x.shape[0] != channels or not x.is_floating_point():
        raise ValueError(
            f'Invalid tensor of {x.dtype} and shape {[*x.shape]}: pass float tensors [{channels}, H, W] that the '
            "model's transform made, or PIL images."
        )
    return x


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


def checkpoint_name(model: Any) -> str:
    """The `arch.tag` of a model of timm, or what is known of it."""
    cfg: dict[str, Any] = model.pretrained_cfg
    return '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))


def trained_on(model: Any) -> str:
    """A sentence on the data set that a model's weights were trained on; empty if the table does not name it."""
    row = CHECKPOINTS.get(checkpoint_name(model))
    return f'{row.name} was trained on {row.trained_on}.' if row and row.trained_on else ''
