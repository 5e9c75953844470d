"""The third tab: the checkpoints as a table, and their accuracy against size and cost as charts."""

import math
from collections.abc import Sequence
from html import escape

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..checkpoints.rows import IMAGENET
from ..models.costs import cost
from ..models.listing import weights_from

COLUMNS = ['checkpoint', 'params (M)', 'GMACs', 'input', 'top-1 (%)', 'measured on', 'licence', 'weights']
COLUMN_WIDTHS = ['295px', '125px', '95px', '80px', '110px', '310px', '115px', '95px']
COLUMN_TYPES = ['str', 'number', 'number', 'number', 'number', 'str', 'str', 'str']

# Families by the first part of their name; style.css has a colour and a shape for each.
_KINDS = {'sknet': 'SKNet, SK-ResNet', 'resnest': 'ResNeSt'}


def rows() -> list[Checkpoint]:
    """The checkpoints with weights."""
    return [row for row in CHECKPOINTS.values() if row.sources]


def table(checkpoints: Sequence[Checkpoint]) -> list[list[str | float | None]]:
    """The table's cells, in the order of `COLUMNS`."""
    return [
        [
            row.name,
            round(cost(row)[0] / 1e6, 2),
            round(cost(row)[1] / 1e9, 3),
            row.input_size[-1],
            None if row.top1 is None else round(row.top1, 2),
            row.dataset or 'not established',
            row.licence or 'none stated',
            weights_from(row),
        ]
        for row in checkpoints
    ]


def charts(checkpoints: Sequence[Checkpoint]) -> str:
    """Accuracy on ImageNet against parameters and multiply-adds, as HTML."""
    comparable = [row for row in checkpoints if row.top1 is not None and row.dataset == IMAGENET]
    keys = ''.join(
        f'<li><i class="sk-point sk-{kind}" aria-hidden="true"></i>{name}</li>' for kind, name in _KINDS.items()
    )
    return f"""<div class="sk-charts">
{_chart(comparable, 'parameters (millions)', [cost(row)[0] / 1e6 for row in comparable])}
{_chart(comparable, 'GMACs', [cost(row)[1] / 1e9 for row in comparable])}
</div><ul class="sk-keys">{keys}</ul>
<p class="sk-note">{len(comparable)} of {len(checkpoints)} checkpoints have an accuracy on {escape(IMAGENET)}.
Point at one for its name; the table below has the numbers.</p>"""


def _chart(checkpoints: Sequence[Checkpoint], unit: str, costs: Sequence[float]) -> str:
    accuracies = [row.top1 or 0.0 for row in checkpoints]
    ticks_x, ticks_y = _log_ticks(min(costs), max(costs)), _ticks(min(accuracies), max(accuracies))
    best = max(checkpoints, key=lambda row: row.top1 or 0.0)

    def x(cost: float) -> float:
        return (math.log(cost) - math.log(ticks_x[0])) / (math.log(ticks_x[-1]) - math.log(ticks_x[0]))

    def y(accuracy: float) -> float:
        return (accuracy - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])

    points = ''.join(
        f'<i class="sk-point sk-{row.family.partition("_")[0]}" style="left:{x(cost):.2%};bottom:{y(accuracy):.2%}" '
        f'title="{escape(row.name)}: {accuracy:.2f} %, {cost:.3g} {unit}"></i>'
        for row, cost, accuracy in zip(checkpoints, costs, accuracies, strict=True)
    )
    lines = ''.join(f'<b class="sk-x" style="left:{x(tick):.2%}"><span>{tick:g}</span></b>' for tick in ticks_x)
    lines += ''.join(f'<b class="sk-y" style="bottom:{y(tick):.2%}"><span>{tick:g}</span></b>' for tick in ticks_y)
    alternative = (
        f'Scatter chart of top-1 accuracy against {unit}: {len(checkpoints)} checkpoints, '
        f'{min(costs):.3g} to {max(costs):.3g} {unit}, {min(accuracies):.2f} to {max(accuracies):.2f} percent; '
        f'the most accurate is {best.name}.'
    )
    return f"""<figure class="sk-chart"><figcaption>Top-1 accuracy (%) against {unit}</figcaption>
<div class="sk-plot" role="img" aria-label="{escape(alternative)}">{lines}{points}</div>
<p class="sk-axis-name">{unit}, logarithmic</p></figure>"""


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose all values."""
    steps = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]
    first = max(step for step in steps if step <= lowest)
    last = min(step for step in steps if step >= highest)
    return [step for step in steps if first <= step <= last]


def _ticks(lowest: float, highest: float, step: int = 2) -> list[float]:
    """Multiples of a step that enclose all values."""
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return [float(step * number) for number in range(first, last + 1)]
