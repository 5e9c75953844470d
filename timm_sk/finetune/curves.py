"""The images of a run, curves and confusion, readable in black and white. Needs matplotlib, the extra `finetune`."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic_io import whole_file

MOST_NAMED = 30  # classes that get a line with their name, and cells with their counts
MOST_PAIRS = 20
_MOST_MARKED = 15  # epochs whose points are marked
_DOTS = 150
_BAR_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)

_LOSSES = {'train_loss': 'training', 'val_loss': 'validation'}
_ACCURACIES = {'train_top1': 'training, top-1', 'val_top1': 'validation, top-1', 'val_top5': 'validation, top-5'}
_STYLES = {
    'train': dict(linestyle='--', marker='o', markerfacecolor='white', color='#7f7f7f'),
    'val': dict(linestyle='-', marker='s', color='#08519c'),
    'val_top5': dict(linestyle=':', marker='^', color='#08519c'),
    'lr': dict(linestyle='-', marker='.', color='black'),
}


def require_matplotlib() -> None:
    """Check that images can be drawn.

    Raises:
        ValueError: If matplotlib is not installed; it says how to install it.
    """
    if find_spec('matplotlib') is None:
        raise ValueError('Curves are drawn by matplotlib, which is not installed: pip install "timm_sk[finetune]".')


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss, accuracy and learning rate by epoch.

    Args:
        history: A row for each epoch, of which `train_loss`, `val_loss`, `train_top1`, `val_top1`, `val_top5` (in
            percent) and `lr` are drawn where they are there.
        path: Where to, with an ending that matplotlib knows, such as .png; it is written whole or not at all.

    Raises:
        ValueError: If there is no epoch to draw.
    """
    if not history:
        raise ValueError('There is no epoch yet whose curves could be drawn.')
    _save(curves_of(history), path)


def curves_of(history: Sequence[Mapping[str, float]]) -> Any:
    """The `matplotlib.figure.Figure` that `draw_curves` saves."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.5, 3.4), layout='constrained', facecolor='white')
    panels = (('loss', _LOSSES), ('accuracy, %', _ACCURACIES), ('learning rate', {'lr': ''}))
    for axes, (label, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        drawn = [_draw_line(axes, history, name, text) for name, text in names.items()]
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        room = 0.5 if len(history) == 1 else 0.02 * len(history)
        axes.set_xlim(1 - room, len(history) + room)
        if label == 'learning rate':
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis='y', scilimits=(-3, 3))
        elif any(drawn):
            axes.legend(frameon=False, fontsize=9)
        axes.grid(color='#e5e5e5')
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def _draw_line(axes: Any, history: Sequence[Mapping[str, float]], name: str, label: str) -> bool:
    values = [row.get(name) for row in history]
    numbers = [math.nan if value is None else float(value) for value in values]
    if not any(map(math.isfinite, numbers)):
        return False
    style: dict[str, Any] = dict(_STYLES[name if name in _STYLES else name.partition('_')[0]])
    if len(history) > _MOST_MARKED:
        del style['marker']
    axes.plot(range(1, len(history) + 1), numbers, label=label, linewidth=1.4, markersize=4, **style)
    return True


def draw_confusion(confusion: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw which classes are taken for which.

    Args:
        confusion: How many images of each true class (rows) were predicted as each class (columns), [K, K].
        names: Of the classes.
        path: Where to, with an ending that matplotlib knows, such as .png; it is written whole or not at all.

    Raises:
        ValueError: If there are not as many names as rows and columns.
    """
    if confusion.shape != (len(names), len(names)):
        raise ValueError(
            f'{len(names)} names do not fit a confusion of shape {list(confusion.shape)}: name each class.'
        )
    _save(confusion_of(confusion, names), path)


def confusion_of(confusion: Tensor, names: Sequence[str]) -> Any:
    """The `matplotlib.figure.Figure` that `draw_confusion` saves."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import PercentFormatter

    counts = confusion.detach().cpu().double()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    named = len(names) <= MOST_NAMED
    size = 2.8 + 0.42 * len(names) if named else 7.0
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(size + (0.9 if named else 4.0), size), layout=layout, facecolor='white')
    axes, beside = (figure.subplots(), None) if named else figure.subplots(1, 2, width_ratios=(7, 4))
    norm = PowerNorm(0.5, 0, 1)  # so that a share of a few percent can be seen
    image = axes.imshow(shares.numpy(), cmap='Greys', norm=norm)
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class')
    figure.colorbar(
        image, ax=axes, shrink=0.8, label='share of the true class', format=PercentFormatter(1), ticks=_BAR_TICKS
    )
    if beside is None:
        _name_cells(axes, counts, shares, names)
    else:
        _list_pairs(beside, counts, shares, names)
    return figure


def _name_cells(axes: Any, counts: Tensor, shares: Tensor, names: Sequence[str]) -> None:
    shown = [_short(name) for name in names]
    upright = sum(map(len, shown)) > 3 * len(shown)
    axes.set_xticks(range(len(names)), shown, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0)
    size = 6 if float(counts.max()) >= 1000 and len(names) > 8 else 8
    for truth, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            if count:
                colour = 'white' if float(shares[truth, predicted]) > 0.3 else 'black'
                axes.text(predicted, truth, f'{count:.0f}', ha='center', va='center', color=colour, fontsize=size)


def _list_pairs(axes: Any, counts: Tensor, shares: Tensor, names: Sequence[str]) -> None:
    """Write which classes are confused most often, in two columns."""
    axes.set_axis_off()
    pairs = most_confused(counts, shares)
    lines = [f'{_short(names[truth])} taken for {_short(names[guess])}' for truth, guess in pairs]
    figures = [f'{counts[pair]:.0f} ({shares[pair]:.0%})' for pair in pairs]
    text = dict(va='top', fontsize=8, linespacing=1.5, transform=axes.transAxes)
    axes.text(0, 1, '\n'.join(['Most confused', *lines] if lines else ['None is confused']), **text)
    axes.text(1, 1, '\n'.join(['images (share)', *figures] if lines else []), ha='right', **text)


def most_confused(counts: Tensor, shares: Tensor, most: int = MOST_PAIRS) -> list[tuple[int, int]]:
    """The pairs of a true and another, predicted class with the most images, the most first.

    Args:
        counts: As `draw_confusion` takes them, [K, K].
        shares: What part of the true class they are, [K, K], which decides where they are equal.
        most: How many pairs at most.
    """
    wrong = counts.clone().fill_diagonal_(0)
    pairs = [(int(truth), int(guess)) for truth, guess in wrong.nonzero()]
    return sorted(pairs, key=lambda pair: (-float(wrong[pair]), -float(shares[pair]), pair))[:most]


def _short(name: str, most: int = 20) -> str:
    """A name without its middle if it is long: names of many classes often begin alike."""
    half = most // 2
    return (name if len(name) <= most else f'{name[: half - 1]}…{name[-half:]}').replace('$', r'\$')


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix.lstrip('.') or 'png', dpi=_DOTS)
