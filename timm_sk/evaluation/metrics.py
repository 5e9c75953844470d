"""Metrics of a classifier on a data set, over all processes."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, Loader
from ..data.images import few, require_few_bad
from ..distributed import DistributedContext, fail_together
from ..models.modes import eval_mode
from ..optional_packages import require_package
from .imagenet_labels import LabelMap

_BINS = 15  # of confidence, for the calibration error, as by default in torchmetrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics, the same in every process.

    Attributes:
        count: Number of images.
        top1: Percentage of images whose most likely class is correct.
        top5: Percentage of images with a correct class among the five most likely ones, or all if there are fewer.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, 0 to 1: mean difference of confidence and accuracy over 15 bins of confidence;
            NaN if a confidence is NaN.
        per_class: Top-1 accuracy of each class in percent; None for a class without images.
        confusion: Number of images by true class (rows) and predicted class (columns), int64 [K, K].
        images_per_second: Throughput of all processes, loading included.
        bad: Images that could not be read, with the reasons.
    """

    count: int
    top1: float
    top5: float
    loss: float
    ece: float
    per_class: list[float | None]
    confusion: Tensor
    images_per_second: float
    bad: list[str]


@dataclass
class _Predictions:
    """Predictions of one process, a tensor [B] per batch; they stay on the device, so that no batch waits."""

    bad: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    truths: list[Tensor] = field(default_factory=list)
    confidences: list[Tensor] = field(default_factory=list)
    in_top5: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, targets: Tensor, correct: Tensor) -> None:
        """Add a batch: logits [B, K], labels of the data set [B] and correct classes [B, M], padded with -1."""
        targets, correct = (labels.to(logits.device, non_blocking=True) for labels in (targets, correct))
        best = logits.topk(min(5, logits.shape[1])).indices  # as timm's accuracy, so ties are broken the same way
        is_correct = (best[:, :, None] == correct[:, None, :]).any(2)  # [B, 5]
        has_label = correct[:, 0] >= 0
        self.losses.append(F.cross_entropy(logits.float(), targets, reduction='none'))
        self.predicted.append(best[has_label, 0])
        self.truths.append(torch.where(is_correct[:, 0], best[:, 0], correct[:, 0])[has_label])
        self.confidences.append(logits.float().softmax(1).amax(1)[has_label])
        self.in_top5.append(is_correct.any(1)[has_label])


def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    num_classes: int,
    context: DistributedContext,
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], ContextManager] = nullcontext,
    label_map: LabelMap | None = None,
    on_batch: Callable[[int], None] | None = None,
    max_bad: int | None = None,
) -> Evaluation:
    """Evaluate a model on all images of a data set, each once.

    All processes must call it. They may have different numbers of batches.

    Args:
        model: Classifier; it is called in eval mode and left in its own.
        loader: This process's images, by `timm_sk.data.eval_loader`.
        num_classes: Number of classes of the labels, K.
        context: Processes and device.
        prepare: Makes model inputs of 8-bit images [B, C, H, W], such as `timm_sk.data.normalizer`.
        autocast: Context of a forward pass.
        label_map: Labels other than the data set's. Images without such a label count for the loss only.
        on_batch: Called after each batch with its number of images in this process.
        max_bad: Number of unreadable images to skip before it stops; None for no limit.

    Raises:
        ValueError: If a label is missing or not one of the K classes; if the model has another number of classes; if
            too many images, or all, cannot be read; if torchmetrics is not installed.
        RuntimeError: If the model fails in any of the processes.
    """
    require_package('torchmetrics', 'finetune')
    if isinstance(model, DistributedDataParallel):
        model = model.module  # whose forward does not wait for other processes
    predictions = _Predictions()

    def add(batch: Batch) -> None:
        predictions.bad += batch.bad
        require_few_bad(predictions.bad, max_bad)
        if len(batch.targets):
            _require_labels(batch.targets, num_classes)
            with autocast():
                logits = model(prepare(batch.images))
            logits = label_map.restricted(logits) if label_map else logits
            if logits.shape[1] != num_classes:
                raise ValueError(f'The model has {logits.shape[1]} classes, the labels have {num_classes}.')
            correct = label_map.correct_classes(batch.targets, batch.indices) if label_map else batch.targets[:, None]
            predictions.add(logits, batch.targets, correct)
        if on_batch:
            on_batch(len(batch.targets) + len(batch.bad))

    def add_all() -> float:
        start = time.perf_counter()
        with eval_mode(model), torch.no_grad():
            for batch in loader.epoch():
                add(batch)
            if context.device.type == 'cuda':
                torch.cuda.synchronize(context.device)
        return time.perf_counter() - start

    seconds = max(context.all_gather(fail_together(context, add_all)))
    bad = [line for lines in context.all_gather(predictions.bad) for line in lines]
    require_few_bad(bad, max_bad)
    return _reduce(predictions, num_classes, seconds, bad, context)


def _reduce(
    own: _Predictions, num_classes: int, seconds: float, bad: list[str], context: DistributedContext
) -> Evaluation:
    """Metrics of the predictions of all processes."""
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

    predicted, truths = _joined(own.predicted, torch.int64), _joined(own.truths, torch.int64)
    confusion = context.all_reduce(multiclass_confusion_matrix(predicted, truths, num_classes, validate_args=False))
    losses, in_top5 = _joined(own.losses, torch.float64), _joined(own.in_top5, torch.int64)
    loss = float(context.all_reduce(losses.sum()))
    images, top5_hits = context.all_reduce(torch.stack([torch.tensor(len(losses)), in_top5.sum()])).tolist()
    count = int(confusion.sum())
    if not count:
        raise ValueError(f'No image to evaluate on: {few(bad) or "none has a label"}.')
    parts = context.all_gather((_joined(own.confidences, torch.float32), predicted == truths))
    confidences, is_correct = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    ece = float('nan')
    if confidences.isfinite().all():  # rounding may make a probability exceed 1
        ece = float(binary_calibration_error(confidences.clamp(max=1), is_correct.long(), _BINS))
    hits, totals = confusion.diag().tolist(), confusion.sum(1).tolist()
    return Evaluation(
        count=count,
        top1=100 * sum(hits) / count,
        top5=100 * top5_hits / count,
        loss=loss / images,
        ece=ece,
        per_class=[100 * hit / total if total else None for hit, total in zip(hits, totals, strict=True)],
        confusion=confusion,
        images_per_second=images / seconds,
        bad=bad,
    )


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Tensors on the CPU in one; empty if this process had no images."""
    return torch.cat(parts).cpu().to(dtype) if parts else torch.empty(0, dtype=dtype)


def _require_labels(targets: Tensor, num_classes: int) -> None:
    least, greatest = int(targets.min()), int(targets.max())
    if least < 0:
        raise ValueError('The data set has images without a label: put each into the folder of its class.')
    if greatest >= num_classes:
        raise ValueError(f'The data set has a label {greatest}, but there are {num_classes} classes, from 0 on.')
