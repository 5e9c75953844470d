"""Other labels of ImageNet's images, and other images of its classes, for models of the 1000 classes.

    real    ReaL: every class that is in an image of the validation set; some have none (https://arxiv.org/abs/2006.07159)
    v2      ImageNet-V2: class folders 0 to 999, each named by the index of its class (https://arxiv.org/abs/1902.10811)
    a, r    ImageNet-A and -R: 200 of the classes each, among which alone a model chooses
            (https://arxiv.org/abs/1907.07174, https://arxiv.org/abs/2006.16241)

The classes of the last two and the labels of the first ship with timm.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor

from ..data import ImageDataset

LABELS = ('real', 'v2', 'a', 'r')
MODEL_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """How the outputs of a model of ImageNet's 1000 classes are judged.

    Attributes:
        labels: One of `LABELS`.
        num_classes: Classes among which the model chooses, K.
        class_names: What they show [K].
        columns: Which of the model's classes they are [K]; None for all.
        accepted: Right classes of each image of the data set [N, M], the rest of a row filled up with -1; None where
            an image's label is the one that it has in the data set.
    """

    labels: str
    num_classes: int
    class_names: list[str]
    columns: Tensor | None = None
    accepted: Tensor | None = None

    def restricted(self, logits: Tensor) -> Tensor:
        """The logits [B, K] of the classes to choose from, of those of a model [B, 1000].

        Raises:
            ValueError: If the model has another number of classes.
        """
        if logits.shape[1] != MODEL_CLASSES:
            raise ValueError(
                f"The labels {self.labels} are for models of ImageNet's {MODEL_CLASSES} classes, this one has "
                f'{logits.shape[1]}: judge it without them.'
            )
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]

    def right_classes(self, targets: Tensor, indices: Tensor) -> Tensor:
        """The right classes of a batch's images [B, M], the rest of a row filled up with -1.

        Args:
            targets: Their labels in the data set [B].
            indices: Their indices in it [B].
        """
        return targets[:, None] if self.accepted is None else self.accepted[indices]


def require_labels(labels: str) -> None:
    """Check that there are labels of that name.

    Raises:
        ValueError: If there are none.
    """
    if labels not in LABELS:
        raise ValueError(f'There are no labels "{labels}": name one of {", ".join(LABELS)}.')


def folder_classes(labels: str) -> dict[str, int] | None:
    """The class index of each folder's name, 0 to K - 1; None for those of ImageNet's validation set.

    Without it timm counts the folders that there are, and those after a missing one would get the wrong index.
    """
    if labels == 'v2':
        return {str(index): index for index in range(MODEL_CLASSES)}
    return {synset: index for index, synset in enumerate(_synsets(labels))} if labels in ('a', 'r') else None


def label_map(labels: str, images: ImageDataset | None = None, *, real_json: str | None = None) -> LabelMap:
    """How labels are to be matched with a model's outputs.

    Args:
        labels: One of `LABELS`.
        images: The data set; needed for 'real'.
        real_json: A file of ReaL labels instead of timm's: for each image of ImageNet's validation set, by its
            number, a list of classes.

    Raises:
        ValueError: If there are no such labels, or the images are not those that they belong to.
    """
    require_labels(labels)
    info = ImageNetInfo()
    names = info.label_descriptions()
    if labels in ('a', 'r'):
        index_of = {synset: index for index, synset in enumerate(info.label_names())}
        columns = torch.tensor([index_of[synset] for synset in _synsets(labels)])
        chosen = [names[column] for column in columns.tolist()]
        return LabelMap(labels=labels, num_classes=len(chosen), class_names=chosen, columns=columns)
    accepted = _real_labels(images, real_json) if labels == 'real' else None
    return LabelMap(labels=labels, num_classes=MODEL_CLASSES, class_names=names, accepted=accepted)


def _synsets(labels: str) -> list[str]:
    """The WordNet ids of ImageNet-A's or -R's classes, which are the names of their folders, in order."""
    return (files('timm.data') / '_info' / f'imagenet_{labels}_synsets.txt').read_text(encoding='utf-8').split()


def _real_labels(images: ImageDataset | None, real_json: str | None) -> Tensor:
    """ReaL labels [N, M] by the image's index, filled up with -1."""
    if not isinstance(images, ImageDataset):
        raise ValueError("ReaL labels need the names of ImageNet's images: give a folder or a tar of them.")
    names = [Path(images.name(index)).name for index in range(len(images))]
    try:
        classes = RealLabelsImagenet(names, real_json).real_labels
    except AssertionError as error:
        raise ValueError(
            f"ReaL labels are for all images of ImageNet's validation set, this data set has {len(names)}."
        ) from error
    stranger = next((name for name in names if name not in classes), None)
    if stranger is not None:
        raise ValueError(f'{stranger}: no ReaL label has this name; they are for ILSVRC2012_val_00000001.JPEG …')
    found = [classes[name] for name in names]
    width = max(1, *map(len, found))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in found])
