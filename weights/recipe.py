"""What a checkpoint's training needs: its settings, its pictures, and the facts of its card."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training run; the learning rate falls as a cosine after a linear warm-up."""

    epochs: int
    warmup_epochs: int
    batch_size: int
    opt: str = 'adamw'
    lr: float
    weight_decay: float = 0.05
    smoothing: float = 0.1
    seed: int = 0


class TrainingSet(Protocol):
    """Pictures to train on, in batches that are all of the same size."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed pictures [B, C, H, W] and labels [B] of one epoch."""


@dataclass(frozen=True, kw_only=True)
class LabelledPictures:
    """Pictures to judge a model by.

    Attributes:
        images: Preprocessed, [N, C, H, W].
        labels: [N].
        pictures: The same before preprocessing.
    """

    images: Tensor
    labels: Tensor
    pictures: list[Image.Image]


class Task(ABC):
    """One checkpoint's data; a subclass for each.

    Attributes:
        recipe: Its settings.
        threads: Processor cores to use, or None for all.
    """

    recipe: ClassVar[Recipe]
    threads: ClassVar[int | None] = None

    @abstractmethod
    def training_set(self) -> TrainingSet:
        """What the checkpoint is trained on."""

    @abstractmethod
    def held_out(self) -> LabelledPictures:
        """What the finished checkpoint is judged by, once."""

    @abstractmethod
    def validation(self) -> Iterator[tuple[TrainingSet, Tensor, Tensor]]:
        """For each model to train: its pictures, and others [N, C, H, W] with labels [N], none of them held out."""

    def facts(self, model: nn.Module) -> dict[str, str]:
        """What the card's template needs beyond what every card has."""
        return {}

    def export_for_tests(self) -> None:  # noqa: B027 - most tasks write nothing
        """Write the held-out pictures to where the tests find them, if nothing else defines them."""
