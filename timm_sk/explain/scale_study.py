"""A data set: the mean attention difference by class, scale and unit, over images that stream by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..attention import record_attention
from ..inference.deployment import inner_model
from ..models.modes import eval_mode
from .intervals import Estimate, RunningMeans
from .units import attention_difference, choose_units


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Attention differences, largest kernel minus smallest, of images at S scales.

    Attributes:
        scales: Zoom factors.
        units: Names of the U units with several branches, in the order in which they ran.
        chosen: Names of the V units with results by class.
        class_names: Names of the K classes.
        counts: Number of images of each class, [K].
        overall: Means over all images, [S, U].
        by_class: Means over each class, [K, S, V].
        shift: Means over all images of the difference at the last scale minus that at the first, [U].
        shift_by_class: The same for each class, [K, V].
        confidence: Confidence of the intervals.
    """

    scales: tuple[float, ...]
    units: tuple[str, ...]
    chosen: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: NDArray[np.int64]
    overall: Estimate
    by_class: Estimate
    shift: Estimate
    shift_by_class: Estimate
    confidence: float


def study(
    model: nn.Module,
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    *,
    scales: Sequence[float],
    class_names: Sequence[str],
    units: Sequence[str] | None = None,
    confidence: float = 0.95,
    on_batch: Callable[[int], None] | None = None,
) -> Study:
    """Run a data set through a model, at several scales, and average the attention of its units.

    Memory does not grow with the number of images. Intervals are t-intervals over images, and nan for fewer than
    `intervals.MIN_IMAGES`.

    Args:
        model: Model with selection, on the device of the batches. It runs in eval mode; afterwards each module is in
            its own mode again.
        batches: The same images [B, in_chans, H, W] at each scale, preprocessed, and their labels [B].
        scales: Zoom factors, in increasing order.
        class_names: Names of the classes.
        units: Names of the units with results by class; None for those of `default_units`.
        confidence: Confidence of the intervals, above 0 and below 1.
        on_batch: Called with the number of images after each batch.

    Raises:
        ValueError: If the model has no unit with several branches, a unit does not exist, there are no images, a label
            has no class, a batch has another number of scales, or the confidence is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f'confidence must be between 0 and 1, got {confidence}.')
    model = inner_model(model)
    dtype = next(model.parameters()).dtype
    means: RunningMeans | None = None
    with eval_mode(model), record_attention(model) as recorded, torch.inference_mode():
        for images, labels in batches:
            if len(images) != len(scales):
                raise ValueError(f'Got a batch of {len(images)} scales, expected {len(scales)}.')
            recorded.clear()
            for x in images:
                model(x.to(dtype))
            selecting = [unit for unit in recorded if len(unit.kernel_extents) > 1]
            if means is None:
                if not selecting:
                    raise ValueError('No unit of the model has several branches: there is no attention difference.')
                names = [unit.name for unit in selecting[: len(selecting) // len(scales)]]
                chosen = choose_units(names, units)
                means = RunningMeans(len(class_names), (len(scales) + 1, len(names)))
            flat = torch.stack([*map(attention_difference, selecting)], dim=1)  # [B, S * U]
            levels = flat.double().cpu().unflatten(1, (len(scales), -1))
            values = torch.cat([levels, levels[:, -1:] - levels[:, :1]], dim=1)  # the shift comes last
            known = labels.cpu().numpy().astype(np.int64)
            invalid = known[(known < 0) | (known >= len(class_names))]
            if len(invalid):
                raise ValueError(f'Invalid label {invalid[0]}: there are {len(class_names)} classes, from 0 on.')
            means.add(values.numpy(), known)
            if on_batch:
                on_batch(len(values))
    if means is None:
        raise ValueError('The data set has no images.')
    overall, by_class = means.overall(confidence), means.by_class(confidence)
    kept = [names.index(name) for name in chosen]
    return Study(
        scales=tuple(float(scale) for scale in scales),
        units=tuple(names),
        chosen=chosen,
        class_names=tuple(class_names),
        counts=means.counts,
        overall=overall[:-1],
        by_class=by_class[:, :-1, kept],
        shift=overall[-1],
        shift_by_class=by_class[:, -1, kept],
        confidence=confidence,
    )
