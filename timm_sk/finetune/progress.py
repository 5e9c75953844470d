"""Where a run is, and the numbers of its epoch so far."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..distributed import DistributedContext


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An epoch of training over all processes: mean loss, top-1 in percent, images and share of waiting."""

    loss: float
    top1: float
    images_per_s: float
    wait_share: float
    seconds: float


@dataclass(kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: Finished epochs.
        images: ImageDataset of the next epoch that all processes together have trained on already.
        updates: Steps of the optimizer so far.
        sums: Of the epoch so far in this process: loss times images, right ones, images; on the model's device.
        seconds: Time of the epoch so far in this process.
        waiting: What of it was spent waiting for images.
        history: A row of numbers for each finished epoch.
        best: The best epoch's row; None before the first.
        bad: ImageDataset that could not be read, with the reasons.
        told: Those of them that the person knows of.
    """

    epoch: int = 0
    images: int = 0
    updates: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    seconds: float = 0.0
    waiting: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    bad: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.images = epoch, 0
        self.forget_sums()

    def forget_sums(self) -> None:
        """Count from nothing again."""
        self.sums, self.seconds, self.waiting = torch.zeros_like(self.sums), 0.0, 0.0

    def tally(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: its loss, logits [B, K] and labels [B]. Nothing waits for a GPU."""
        right = (logits.argmax(dim=1) == targets.to(logits.device, non_blocking=True)).sum()
        count = len(logits)
        self.sums = self.sums.to(loss.device)
        self.sums += torch.stack([loss.double() * count, right.double(), torch.full_like(right, count).double()])

    def shown(self) -> dict[str, float]:
        """Loss, accuracy and speed of the epoch so far in this process."""
        loss, right, count = self.sums.tolist()
        values = dict(loss=loss / count, top1=100 * right / count)
        return values | dict(images_per_s=count / self.seconds) if self.seconds else values

    def summed(self, context: DistributedContext) -> Trained:
        """The epoch so far over all processes."""
        loss, right, count, seconds, waiting = self._totals(context).tolist()
        count, seconds = max(count, 1.0), max(seconds, 1e-9)
        return Trained(
            loss=loss / count,
            top1=100 * right / count,
            images_per_s=context.size * count / seconds,
            wait_share=waiting / seconds,
            seconds=seconds / context.size,
        )

    def as_saved(self, context: DistributedContext) -> dict[str, Any]:
        """What a checkpoint keeps, over all processes; each has to take part."""
        totals = self._totals(context)
        bad = sorted({name for names in context.gather(self.bad) for name in names})
        seconds, waiting = totals[3:].tolist()
        return asdict(self) | dict(sums=totals[:3], seconds=seconds, waiting=waiting, bad=bad)

    def _totals(self, context: DistributedContext) -> Tensor:
        own = [*self.sums.tolist(), self.seconds, self.waiting]
        return context.sum(torch.tensor(own, dtype=torch.float64))
