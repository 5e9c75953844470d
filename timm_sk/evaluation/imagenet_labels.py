"""Labels and variants of ImageNet, for models of its 1000 classes.

    real    ReaL: all classes in an image of the validation set; may be none (https://arxiv.org/abs/2006.07159)
    v2      ImageNet-V2: folders 0 to 999, named by the index of their class (https://arxiv.org/abs/1902.10811)
    a, r    ImageNet-A and -R: 200 of the classes, to which predictions are restricted
            (https://arxiv.org/abs/1907.07174, https://arxiv.org/abs/2006.16241)

timm ships the labels of ReaL and the classes of ImageNet-A and -R.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor

from ..data import ImageDataset

MODEL_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Labels for the outputs of a model of ImageNet's 1000 classes."""

    labels: str  # one of `LABELS`
    class_names: list[str]  # [K]
    columns: Tensor | None = None  # indices of the classes in the model's output [K]; None for all
    accepted: Tensor | None = None  # correct classes of each image [N, M], padded with -1; None for the data set's

    def restricted(self, logits: Tensor) -> Tensor:
        """The logits [B, K] of the classes, from those of a model [B, 1000].

        Raises:
            ValueError: If the model has another number of classes.
        """
        if logits.shape[1] != MODEL_CLASSES:
            raise ValueError(
                f"The labels {self.labels} are for models of ImageNet's {MODEL_CLASSES} classes, this one has "
                f'{logits.shape[1]}: omit --labels.'
            )
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]

    def correct_classes(self, targets: Tensor, indices: Tensor) -> Tensor:
        """The correct classes [B, M], padded with -1, of labels of the data set [B] and indices of images [B]."""
        return targets[:, None] if self.accepted is None else self.accepted[indices]


def folder_classes(labels: str) -> dict[str, int] | None:
    """Class indices by folder name, 0 to K - 1; None for ImageNet's own folders.

    timm numbers the existing folders, so that those after a missing one would get the wrong index.
    """
    if labels == 'v2':
        return {str(index): index for index in range(MODEL_CLASSES)}
    return {synset: index for index, synset in enumerate(_synsets(labels))} if labels in ('a', 'r') else None


def label_map(labels: str, images: ImageDataset | None = None, *, real_json: str | None = None) -> LabelMap:
    """Labels by name, one of `LABELS`; those of ReaL for a data set, from timm or a file.

    Raises:
        ValueError: If the images are not those of the labels.
    """
    info = ImageNetInfo()
    names = info.label_descriptions()
    if labels in ('a', 'r'):
        index_of = {synset: index for index, synset in enumerate(info.label_names())}
        columns = torch.tensor([index_of[synset] for synset in _synsets(labels)])
        chosen = [names[column] for column in columns.tolist()]
        return LabelMap(labels=labels, class_names=chosen, columns=columns)
    accepted = _real_labels(images, real_json) if labels == 'real' else None
    return LabelMap(labels=labels, class_names=names, accepted=accepted)


def _synsets(labels: str) -> list[str]:
    """The WordNet ids of the classes of ImageNet-A or -R, in order; they name the folders."""
    return (files('timm.data') / '_info' / f'imagenet_{labels}_synsets.txt').read_text(encoding='utf-8').split()


def _real_labels(images: ImageDataset | None, real_json: str | None) -> Tensor:
    """ReaL labels [N, M] by index of the image, padded with -1."""
    if not isinstance(images, ImageDataset):
        raise ValueError("ReaL labels need the names of ImageNet's images: give a folder or a tar of them.")
    names = [Path(images.name(index)).name for index in range(len(images))]
    try:
        classes = RealLabelsImagenet(names, real_json).real_labels
    except AssertionError as error:
        raise ValueError(
            f"ReaL labels are for all images of ImageNet's validation set, this data set has {len(names)}."
        ) from error
    unknown = next((name for name in names if name not in classes), None)
    if unknown is not None:
        raise ValueError(f'{unknown}: no ReaL label has this name; they are for ILSVRC2012_val_00000001.JPEG …')
    found = [classes[name] for name in names]
    width = max(1, *map(len, found))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in found])
