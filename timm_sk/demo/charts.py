"""Charts of accuracy on ImageNet against size and cost: the checkpoints, and baselines without selection."""

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ..checkpoints import Checkpoint
from ..checkpoints.rows import IMAGENET
from ..models.costs import cost
from .html import link

# ResNet and ResNeXt with torchvision's weights (tv: its first recipe, tv2: its second) at 224 pixels: the accuracies
# are timm's, the costs are counted like those of the checkpoints.
BASELINES = Path(__file__).with_name('baselines.csv')
SOURCE = (
    'https://github.com/huggingface/pytorch-image-models/blob/0173a139a2c66db3a41ebfe1d8ac4fb02483642e/'
    'results/results-imagenet.csv'
)

# Families by the first part of their name; style.css has a colour and a shape for each.
_KINDS = {'sknet': 'SKNet, SK-ResNet', 'resnest': 'ResNeSt', 'baseline': 'ResNet, ResNeXt'}
_PLOTS = {'wide': (500, 440), 'narrow': (250, 440)}  # pixels of a plot whose labels have this class in style.css
_COST_TICKS = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]
_LETTER, _LINE, _POINT = 5.6, 13, 6  # width and height of a label's letter, and half a point, in pixels


class Point(NamedTuple):
    """A checkpoint or a baseline: its kind, top-1 accuracy in percent, millions of parameters, and GMACs."""

    name: str
    kind: str
    accuracy: float
    params: float
    gmacs: float

    @property
    def label(self) -> str:
        return self.name.removesuffix('_in1k').removesuffix('.in1k')


def baselines() -> list[Point]:
    """The baselines in the file."""
    with BASELINES.open(newline='', encoding='utf-8') as file:
        return [
            Point(row['name'], 'baseline', float(row['top1']), int(row['params']) / 1e6, int(row['macs']) / 1e9)
            for row in csv.DictReader(file)
        ]


def charts(checkpoints: Sequence[Checkpoint]) -> str:
    """Accuracy on ImageNet against parameters and multiply-adds, as HTML."""
    ours = [
        Point(row.name, row.family.partition('_')[0], row.top1, cost(row)[0] / 1e6, cost(row)[1] / 1e9)
        for row in checkpoints
        if row.top1 is not None and row.dataset == IMAGENET
    ]
    points = [*baselines(), *ours]
    keys = ''.join(
        f'<li><i class="sk-point sk-{kind}" aria-hidden="true"></i>{name}</li>' for kind, name in _KINDS.items()
    )
    return f"""<div class="sk-charts">
{_chart(points, 'parameters (millions)', [point.params for point in points])}
{_chart(points, 'GMACs', [point.gmacs for point in points])}
</div><ul class="sk-keys">{keys}</ul>
<p class="sk-note">Higher is more accurate, further left is smaller or cheaper. {len(ours)} of {len(checkpoints)}
checkpoints have an accuracy on {escape(IMAGENET)}, as their makers report it. The baselines have no selection:
tv and tv2 are torchvision's first and second training recipe, {link(SOURCE, 'measured by timm')} at 224 pixels.
Point at a mark for its name and numbers.</p>"""


def _chart(points: Sequence[Point], unit: str, costs: Sequence[float]) -> str:
    accuracies = [point.accuracy for point in points]
    ticks_x, ticks_y = _enclosing(_COST_TICKS, costs), _enclosing(range(0, 102, 2), accuracies)

    def x(cost: float) -> float:
        return (math.log(cost) - math.log(ticks_x[0])) / (math.log(ticks_x[-1]) - math.log(ticks_x[0]))

    def y(accuracy: float) -> float:
        return (accuracy - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])

    places = [(x(cost), y(accuracy)) for cost, accuracy in zip(costs, accuracies, strict=True)]
    styles = [f'style="left:{left:.2%};bottom:{bottom:.2%}"' for left, bottom in places]
    marks = ''.join(
        f'<i class="sk-point sk-{point.kind}" {style} '
        f'title="{escape(point.name)}: {point.accuracy:.2f} %, {cost:.3g} {unit}"></i>'
        for point, cost, style in zip(points, costs, styles, strict=True)
    )
    marks += ''.join(
        f'<span class="sk-label sk-{side} sk-{width}" {styles[index]}>{escape(points[index].label)}</span>'
        for width, size in _PLOTS.items()
        for index, side in label_sides(points, places, *size).items()
    )
    lines = ''.join(f'<b class="sk-x" style="left:{x(tick):.2%}"><span>{tick:g}</span></b>' for tick in ticks_x)
    lines += ''.join(f'<b class="sk-y" style="bottom:{y(tick):.2%}"><span>{tick:g}</span></b>' for tick in ticks_y)
    ours = [point for point in points if point.kind != 'baseline']
    alternative = (
        f'Scatter chart of top-1 accuracy against {unit}: {len(ours)} checkpoints and {len(points) - len(ours)} '
        f'baselines, {min(costs):.3g} to {max(costs):.3g} {unit}, {min(accuracies):.2f} to {max(accuracies):.2f} '
        f'percent; the most accurate is {max(ours, key=lambda point: point.accuracy).name}.'
    )
    return f"""<figure class="sk-chart"><figcaption>Top-1 accuracy (%) against {unit}</figcaption>
<div class="sk-plot" role="img" aria-label="{escape(alternative)}">{lines}{marks}</div>
<p class="sk-axis-name">{unit}, logarithmic</p></figure>"""


def label_sides(
    points: Sequence[Point], places: Sequence[tuple[float, float]], width: int, height: int
) -> dict[int, str]:
    """The side, 'right' or 'left', of each label that covers no point and no other label of a plot of this size.

    Checkpoints that no cheaper one matches come first, then the baselines, then the others by accuracy.
    """
    ours = [place for place, point in zip(places, points, strict=True) if point.kind != 'baseline']

    def rank(index: int) -> tuple[int, float]:
        left, bottom = places[index]
        matched = any(x < left and y >= bottom for x, y in ours)
        return (1 if points[index].kind == 'baseline' else 2 * matched), -bottom

    centres = [(x * width, y * height) for x, y in places]
    taken = [(x - _POINT, x + _POINT, y - _POINT, y + _POINT) for x, y in centres]
    sides: dict[int, str] = {}
    for index in sorted(range(len(points)), key=rank):
        (x, y), length = centres[index], _LETTER * len(points[index].label)
        for side, left in (('right', x + _POINT + 2), ('left', x - _POINT - 2 - length)):
            right, low, high = left + length, y - _LINE / 2, y + _LINE / 2
            free = all(right <= a or b <= left or high <= c or d <= low for a, b, c, d in taken)
            if index not in sides and free and left >= 0 and right <= width:
                sides[index] = side
                taken.append((left, right, low, high))
    return sides


def _enclosing(ticks: Sequence[float], values: Sequence[float]) -> list[float]:
    """The ticks of an axis that shows all values."""
    first = max(tick for tick in ticks if tick <= min(values))
    last = min(tick for tick in ticks if tick >= max(values))
    return [tick for tick in ticks if first <= tick <= last]
