"""A data set: the mean attention difference by class, scale and depth, as pictures stream by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..attention import UnitWeights, record_attention
from ..models.modes import eval_mode
from .bootstrap import Estimate, Means, PoissonBootstrap, estimate
from .units import attention_difference, choose_units, inner_model

REPLICATES = 500
CONFIDENCE = 0.95
FEWEST = 5  # pictures for which there is an interval: a bootstrap over fewer is too narrow by far


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Attention differences, largest kernel minus smallest, of pictures at S scales.

    Attributes:
        scales: As named by whoever asked.
        units: Names of the U units with several branches, in the order in which they ran.
        chosen: Names of the V units that are told apart by class.
        class_names: Of the K classes.
        counts: Pictures of each class, [K].
        overall: Means over all pictures, [S, U].
        by_class: Means over each class, [K, S, V].
        shift: How much the means over all pictures are higher at the last scale than at the first, [U].
        shift_by_class: The same for each class, [K, V].
        confidence: Of the intervals.
        replicates: Of the bootstrap.
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
    replicates: int


def study(
    model: nn.Module,
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    *,
    scales: Sequence[float],
    class_names: Sequence[str],
    units: Sequence[str] | None = None,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Study:
    """Run a data set through a model, at several scales, and average what its units select.

    What is kept does not grow with the number of pictures. Intervals are those of a Poisson bootstrap over pictures,
    and nan for fewer than `FEWEST`.

    Args:
        model: A model with selection, on the device of the batches. It runs in eval mode; afterwards each module is in
            the mode that it was in.
        batches: The same pictures [B, in_chans, H, W] at each scale, ready for the model, and their labels [B].
        scales: What the scales are called, in increasing order.
        class_names: Of the labels.
        units: Names of the units that are told apart by class; None for those of `default_units`.
        replicates: Of the bootstrap.
        confidence: Of the intervals, above 0 and below 1.
        seed: Of the bootstrap.
        on_batch: Called with the number of pictures after each batch.

    Raises:
        ValueError: If the model has no unit with several branches, a unit does not exist, there is no picture, a label
            has no class, a batch has another number of scales, or an argument is out of range.
    """
    if replicates < 1 or not 0 < confidence < 1:
        raise ValueError(
            f'The bootstrap needs 1 replicate or more and a confidence between 0 and 1, got {replicates}, {confidence}.'
        )
    model = inner_model(model)
    bootstrap = PoissonBootstrap(replicates, seed)
    names: list[str] = []
    chosen: tuple[str, ...] = ()
    kept: list[int] = []  # of the numbers of a picture, [S * U], those of the chosen units
    overall = Means(0, replicates)
    classes: dict[int, Means] = {}
    with eval_mode(model), record_attention(model) as ran, torch.inference_mode():
        for pictures, labels in batches:
            if len(pictures) != len(scales):
                raise ValueError(f'A batch has {len(pictures)} scales, {len(scales)} are named.')
            ran.clear()
            for x in pictures:
                model(x)
            selected = [unit for unit in ran if len(unit.kernel_extents) > 1]
            if not names:
                names = _names(selected, len(scales))
                chosen = choose_units(names, units)
                kept = [s * len(names) + names.index(name) for s in range(len(scales)) for name in chosen]
                overall = Means(len(selected), replicates)
            values = torch.stack([*map(attention_difference, selected)], dim=1).double().cpu().numpy()  # [B, S * U]
            draws = bootstrap.draw(len(values))
            overall.add(values, draws)
            for label, rows in _by_label(labels, len(class_names)).items():
                means = classes.setdefault(label, Means(len(kept), replicates))
                means.add(values[rows][:, kept], draws[rows])
            if on_batch:
                on_batch(len(values))
    if not overall.count:
        raise ValueError('The data set has no picture to study.')
    by_class = [classes.get(label, Means(len(kept), replicates)) for label in range(len(class_names))]
    of_all = _estimates(overall, len(scales), confidence)
    of_classes = [_estimates(means, len(scales), confidence) for means in by_class]
    return Study(
        scales=tuple(float(scale) for scale in scales),
        units=tuple(names),
        chosen=chosen,
        class_names=tuple(class_names),
        counts=np.array([means.count for means in by_class]),
        overall=of_all[0],
        by_class=_stacked([levels for levels, _ in of_classes]),
        shift=of_all[1],
        shift_by_class=_stacked([shift for _, shift in of_classes]),
        confidence=confidence,
        replicates=replicates,
    )


def _names(selected: Sequence[UnitWeights], scales: int) -> list[str]:
    """Of the units that ran at one scale."""
    if not selected:
        raise ValueError('No unit of the model has several branches: there is no difference between them to study.')
    return [unit.name for unit in selected[: len(selected) // scales]]


def _by_label(labels: Tensor, classes: int) -> dict[int, NDArray[np.intp]]:
    """Which pictures of a batch have each label."""
    found = labels.cpu().numpy()
    if ((found < 0) | (found >= classes)).any():
        wrong = found[(found < 0) | (found >= classes)][0]
        raise ValueError(f'A picture has the label {wrong}, but there are {classes} classes, from 0 on.')
    return {int(label): np.flatnonzero(found == label) for label in np.unique(found)}


def _estimates(means: Means, scales: int, confidence: float) -> tuple[Estimate, Estimate]:
    """At each scale [S, U], and of the last minus the first [U]."""
    mean = means.mean().reshape(scales, -1)
    replicates = means.replicates()[:, : None if means.count >= FEWEST else 0]
    replicates = replicates.reshape(*mean.shape, replicates.shape[-1])
    shift = estimate(mean[-1] - mean[0], replicates[-1] - replicates[0], confidence)
    return estimate(mean, replicates, confidence), shift


def _stacked(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(*(np.stack([getattr(one, part) for one in estimates]) for part in ('mean', 'low', 'high')))
