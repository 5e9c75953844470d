"""Plots of a run: curves and confusion matrix. They need matplotlib, from the extra `finetune`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic_io import atomic_write

_MAX_NAMED = 30  # classes whose names and counts fit into the plot
_MAX_PAIRS = 20
_DPI = 150
_PANELS = {
    'loss': ('train_loss', 'val_loss'),
    'accuracy, %': ('train_top1', 'val_top1', 'val_top5'),
    'learning rate': ('lr',),
}
_STYLES = dict(train_loss='--o', val_loss='-s', train_top1='--o', val_top1='-s', val_top5=':^', lr='-.')


def plot_curves(history: Sequence[Mapping[str, float]], path: Path) -> Any:
    """Plot loss, accuracy and learning rate by epoch, except those that are missing; returns the figure.

    Raises:
        ValueError: If there is no epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError('There is no epoch to plot yet.')
    figure = Figure(figsize=(10.5, 3.4), layout='constrained')
    epochs = range(1, len(history) + 1)
    for axes, (label, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name in names:
            values = [math.nan if row.get(name) is None else row[name] for row in history]
            if any(map(math.isfinite, values)):
                axes.plot(epochs, values, _STYLES[name], label=name, markersize=4, markevery=-(-len(epochs) // 15))
                axes.legend()
        axes.set(xlabel='epoch', ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    _save(figure, path)
    return figure


def plot_confusion(confusion: Tensor, names: Sequence[str], path: Path) -> Any:
    """Plot the confusion matrix; of many classes beside a list of the most confused pairs; returns the figure.

    The matrix [K, K] has the number of images by true class (rows) and predicted class (columns).

    Raises:
        ValueError: If the number of names is not K.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    if confusion.shape != (len(names), len(names)):
        raise ValueError(f'Got {len(names)} names for a confusion matrix of shape {list(confusion.shape)}.')
    counts = confusion.detach().cpu().double()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    is_named = len(names) <= _MAX_NAMED
    size = 2.8 + 0.42 * len(names) if is_named else 7.0
    figure = Figure(figsize=(size + (0.9 if is_named else 4.0), size), layout='constrained')
    axes, *beside = figure.subplots(1, 2, width_ratios=(7, 4)) if not is_named else [figure.subplots()]
    image = axes.imshow(shares.numpy(), cmap='Greys', norm=PowerNorm(0.5, 0, 1))  # makes small shares visible
    figure.colorbar(image, ax=axes, shrink=0.8, label='share of the true class')
    axes.set(xlabel='predicted class', ylabel='true class')
    labels = [_shortened(name) for name in names]
    if is_named:
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
        for truth, predicted in counts.nonzero().tolist():
            colour = 'white' if shares[truth, predicted] > 0.3 else 'black'
            text = f'{counts[truth, predicted]:.0f}'
            axes.text(predicted, truth, text, ha='center', va='center', color=colour, fontsize=7)
    else:
        beside[0].set_axis_off()
        lines = [
            f'{counts[pair]:.0f} ({shares[pair]:.0%})  {labels[pair[0]]} as {labels[pair[1]]}'
            for pair in _most_confused(counts, shares)
        ]
        title = 'Most confused: images (share), true as predicted'
        beside[0].text(0, 1, '\n'.join([title, *lines]), va='top', fontsize=8)
    _save(figure, path)
    return figure


def _most_confused(counts: Tensor, shares: Tensor) -> list[tuple[int, int]]:
    """Pairs of true and wrongly predicted classes, those with the most images first; larger shares break ties."""
    wrong = counts.clone().fill_diagonal_(0)
    pairs = [(truth, predicted) for truth, predicted in wrong.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: (-float(wrong[pair]), -float(shares[pair]), pair))[:_MAX_PAIRS]


def _shortened(name: str) -> str:
    """A name without its middle if it is long; dollars are escaped, as matplotlib reads them as formulas."""
    return (name if len(name) <= 20 else f'{name[:9]}…{name[-10:]}').replace('$', r'\$')


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=_DPI)
