"""Interface of a checkpoint made here: settings, images, and facts for its card."""

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
    """Training images, in batches of equal size."""

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed images [B, C, H, W] and labels [B] of one epoch."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images for evaluation.

    Attributes:
        images: Preprocessed, [N, C, H, W].
        labels: [N].
        originals: The same images before preprocessing.
    """

    images: Tensor
    labels: Tensor
    originals: list[Image.Image]


class Task(ABC):
    """Data and settings of one checkpoint.

    Attributes:
        recipe: Settings of the training run.
        threads: Processor cores to use, or None for all.
    """

    recipe: ClassVar[Recipe]
    threads: ClassVar[int | None] = None

    @abstractmethod
    def training_set(self) -> TrainingSet:
        """Training images."""

    @abstractmethod
    def held_out(self) -> LabelledImages:
        """Images for the final evaluation; used once."""

    @abstractmethod
    def validation(self) -> Iterator[tuple[TrainingSet, Tensor, Tensor]]:
        """Yield training set, validation images [N, C, H, W] and labels [N] per model to train; none is held out."""

    def facts(self, model: nn.Module) -> dict[str, str]:
        """Facts for the card's template beyond the common ones."""
        return {}

    def export_for_tests(self) -> None:  # noqa: B027 - most tasks write nothing
        """Write the held-out images to tests/data, unless code defines them."""
