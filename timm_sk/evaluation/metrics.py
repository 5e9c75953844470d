"""How well a model knows the images of a data set, over all processes together."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, Loader
from ..distributed import DistributedContext, fail_together
from ..models.modes import eval_mode
from .imagenet_labels import LabelMap

_BINS = 15  # of confidence, for the calibration error; torchmetrics' default too
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found, the same in every process.

    Attributes:
        count: ImageDataset that were judged.
        top1: Percent of them whose likeliest class is right.
        top5: Percent of them with a right class among the five likeliest, or among all if there are fewer.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, 0 to 1: how far the confidence is from the accuracy, on average over 15 bins
            of confidence; nan where a confidence is no number.
        per_class: Percent of the images of each class whose likeliest class is right; None for one with no images.
        confusion: ImageDataset by their true class (row) and their likeliest one (column), int64 [K, K].
        images_per_second: Of all processes together, loading included.
        bad: ImageDataset that could not be read, each with the reason.
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


class _Verdicts:
    """One process's verdicts, a tensor per batch, on the model's device until the end, so that no batch waits."""

    def __init__(self) -> None:
        self.bad: list[str] = []
        self.images = 0
        self.losses: list[Tensor] = []  # each [B], and so are the following
        self.predictions: list[Tensor] = []
        self.truths: list[Tensor] = []
        self.confidences: list[Tensor] = []
        self.are_in_top5: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor, right: Tensor) -> None:
        """Judge logits [B, K] by the labels in the data set [B], and the right classes [B, M] filled up with -1."""
        targets, right = (labels.to(logits.device, non_blocking=True) for labels in (targets, right))
        best = logits.topk(min(5, logits.shape[1])).indices  # as timm's accuracy does, so ties fall the same way
        is_right = (best[:, :, None] == right[:, None, :]).any(2)  # [B, 5]
        has_label = right[:, 0] >= 0
        self.images += len(targets)
        self.losses.append(F.cross_entropy(logits.float(), targets, reduction='none'))
        self.predictions.append(best[has_label, 0])
        self.truths.append(torch.where(is_right[:, 0], best[:, 0], right[:, 0])[has_label])
        self.confidences.append(logits.float().softmax(1).amax(1)[has_label])
        self.are_in_top5.append(is_right.any(1)[has_label])


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
    """Judge a model by all images of a data set, each once.

    All processes must call it. They may have different numbers of batches: they meet in the end.

    Args:
        model: A classifier. It is in eval mode meanwhile, afterwards in the mode that it was in.
        loader: This process's share of the images, by `timm_sk.data.eval_loader`.
        num_classes: Of the labels, K.
        context: The processes.
        prepare: What makes the model's input of 8-bit images [B, C, H, W], such as `timm_sk.data.normalizer`.
        autocast: What gives the context that the model runs in.
        label_map: Other labels than the data set's. Images that have none of them count for the loss alone.
        on_batch: Called after each batch with the number of this process's images in it.
        max_bad: ImageDataset that cannot be read before it stops; None for never.

    Raises:
        ValueError: If an image has no label, or one that is none of the K classes; if the model has another number of
            classes; if more than `max_bad` images cannot be read, or none can; if torchmetrics is not installed.
        RuntimeError: If the model fails, in any of the processes.
    """
    require_torchmetrics()
    if isinstance(model, DistributedDataParallel):
        model = model.module  # whose forward waits for no other process
    verdicts = _Verdicts()

    def judge(batch: Batch) -> None:
        verdicts.bad += batch.bad
        _require_readable(verdicts.bad, max_bad)
        if len(batch.targets):
            _require_labels(batch.targets, num_classes)
            with autocast():
                logits = model(prepare(batch.images))
            logits = label_map.restricted(logits) if label_map else logits
            if logits.shape[1] != num_classes:
                raise ValueError(f'The model has {logits.shape[1]} classes, the labels {num_classes}.')
            right = label_map.right_classes(batch.targets, batch.indices) if label_map else batch.targets[:, None]
            verdicts.add(logits, batch.targets, right)
        if on_batch:
            on_batch(len(batch.targets) + len(batch.bad))

    def judge_all() -> float:
        start = time.perf_counter()
        with eval_mode(model), torch.no_grad():
            for batch in loader.epoch():
                judge(batch)
            if context.device.type == 'cuda':
                torch.cuda.synchronize(context.device)
        return time.perf_counter() - start

    seconds = fail_together(context, judge_all)
    return _summed(verdicts, num_classes, max(context.all_gather(seconds)), context, max_bad)


def _summed(
    verdicts: _Verdicts, num_classes: int, seconds: float, context: DistributedContext, max_bad: int | None
) -> Evaluation:
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

    bad = [name for names in context.all_gather(verdicts.bad) for name in names]
    _require_readable(bad, max_bad)
    predictions, truths = _joined(verdicts.predictions, torch.int64), _joined(verdicts.truths, torch.int64)
    confusion = context.all_reduce(multiclass_confusion_matrix(predictions, truths, num_classes, validate_args=False))
    losses, are_in_top5 = _joined(verdicts.losses, torch.float64), _joined(verdicts.are_in_top5, torch.int64)
    loss = float(context.all_reduce(losses.sum()))
    images, in_top5 = context.all_reduce(torch.stack([torch.tensor(verdicts.images), are_in_top5.sum()])).tolist()
    count = int(confusion.sum())
    if not count:
        raise ValueError(f'There is no image to judge by: {_few(bad) or "none has a label"}.')
    shares = context.all_gather((_joined(verdicts.confidences, torch.float32), predictions == truths))
    confidences, are_right = (torch.cat(parts) for parts in zip(*shares, strict=True))
    ece = (  # of a class's confidence and whether it is right; rounding must not make a probability exceed 1
        float(binary_calibration_error(confidences.clamp(max=1), are_right.long(), _BINS))
        if confidences.isfinite().all()
        else float('nan')
    )
    hits, totals = confusion.diag().tolist(), confusion.sum(1).tolist()
    return Evaluation(
        count=count,
        top1=100 * sum(hits) / count,
        top5=100 * in_top5 / count,
        loss=loss / images,
        ece=ece,
        per_class=[100 * hit / total if total else None for hit, total in zip(hits, totals, strict=True)],
        confusion=confusion,
        images_per_second=images / seconds,
        bad=bad,
    )


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Tensors on the CPU in one; this process may have had no images."""
    return torch.cat(parts).cpu().to(dtype) if parts else torch.empty(0, dtype=dtype)


def require_torchmetrics() -> None:
    """Check that what judges is installed.

    Raises:
        ValueError: If it is not; says how to install it.
    """
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError('Validation needs torchmetrics: pip install "timm_sk[finetune]".') from error


def _require_readable(bad: list[str], most: int | None) -> None:
    if most is not None and len(bad) > most:
        raise ValueError(
            f'{len(bad)} image{"s" * (len(bad) != 1)} cannot be read, {most} may be: {_few(bad)}. '
            'Mend or remove what is damaged, or allow more with --max-bad-images.'
        )


def _require_labels(targets: Tensor, num_classes: int) -> None:
    least, greatest = int(targets.min()), int(targets.max())
    if least < 0:
        raise ValueError('The data set has images without a label: put each into the folder of its class.')
    if greatest >= num_classes:
        raise ValueError(f'The data set has a label {greatest}, but there are {num_classes} classes, from 0 on.')


def _few(lines: list[str]) -> str:
    more = len(lines) - _MOST_NAMED
    return '; '.join(lines[:_MOST_NAMED]) + (f' and {more} more' if more > 0 else '')
