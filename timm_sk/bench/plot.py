"""Results as a figure: ratio bars, or time and memory along an axis. Needs matplotlib, the extra `bench`."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from .matrix import FORMS, GRAPH

Result = dict[str, str]

_COLORS = {
    'ours eager': '#9ecae1',
    'ours reparameterized': '#3182bd',
    'ours deployed': '#08519c',
    'ours merged': '#31a354',
    'ours compiled': '#e6550d',
    'ours max_autotune': '#fd8d3c',
    'ours inductor': '#a63603',
    'ours folded': '#c6dbef',
    'ours folded_merged': '#6baed6',
    'ours folded_joined': '#4292c6',
    'plain eager': '#bdbdbd',
    'plain compiled': '#969696',
    'plain max_autotune': '#737373',
}
_TITLE = 'Median, min and max of the ratios of each round; compiled forms against the same, the rest against eager'
_TEXT_BOX = dict(facecolor='white', edgecolor='none', pad=0.8, alpha=0.75)
_LINE_COLORS = ('#3182bd', '#e6550d', '#31a354', '#756bb1', '#636363')
_AXIS_LABELS = {
    'batch': 'images in a step',
    'resolution': 'height and width, pixels',
    'branches': 'branches M',
    'depth': 'layers',
}
_MEASURES = {
    'median_ms': ('ms per step', 1.0),
    'peak_bytes': ('peak MB of a step', 1e6),
    'saved_bytes_per_image': ('MB saved per image', 1e6),
}
_KEY = ('arch', 'branches', 'scaling', 'side', 'form', 'dtype', 'memory_format', 'task', 'batch', 'size', 'device')


def figure_of(results: Sequence[Result]) -> Any:
    """A `matplotlib.figure.Figure` of rows of the CSV, as text by column; of repeated rows the last counts.

    Raises:
        ValueError: If there is nothing to draw, or rows are of several scaling axes.
    """
    from matplotlib.figure import Figure

    timed = [result for result in results if result['median_ms'] and result['side'] != 'convolutions']
    timed = list({tuple(result[name] for name in _KEY): result for result in timed}.values())
    axes = sorted({result['scaling'] for result in timed})
    if len(axes) != 1:
        raise ValueError(f'A plot needs timed rows of one kind, got {", ".join(axes) or "no timed row"}.')
    (axis,) = axes
    figure = Figure(layout='constrained', facecolor='white')
    if axis:
        _draw_scaling(figure, timed, axis)
    else:
        _draw_ratios(figure, timed)
    machine = [f'{device}, {processor.split(";")[0]}' for device, processor in _grouped(timed, 'device', 'processor')]
    versions = [f'torch {torch}, timm {timm}' for torch, timm in _grouped(timed, 'torch', 'timm')]
    title = f'Scaling with {axis}' if axis else _TITLE
    figure.suptitle(f'{title}\n{"; ".join([*machine, *versions])}', fontsize=10)
    return figure


def _grouped(results: Sequence[Result], *names: str) -> dict[tuple[str, ...], list[Result]]:
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in names), []).append(result)
    return groups


def _draw_ratios(figure: Any, results: Sequence[Result]) -> None:
    """A panel per task, dtype, memory format and shape; bars by architecture and form, whiskers from min to max."""
    from matplotlib.patches import Patch

    compared = [result for result in results if result['ratio_median'] and result['side'] != 'timm']
    if not compared:
        raise ValueError('No row has a ratio to draw.')
    panels = _grouped(compared, 'task', 'dtype', 'memory_format', 'batch', 'size')
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    bars = max(map(len, panels.values()))
    figure.set_size_inches(min(max(4.5, 1.5 + 0.45 * bars), 10) * columns, 4 * lines + 1)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    kinds = [kind for kind in _COLORS if kind in map(_kind, compared)]
    for axes, ((task, dtype, memory_format, batch, size), members) in zip(grid.flat, panels.items(), strict=False):
        _draw_bars(axes, members, kinds)
        axes.set_title(f'{task}, {dtype}, {memory_format}, {batch}x3x{size}x{size}', fontsize=10)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    medians = [float(result['ratio_median']) for result in compared]
    largest = max(float(result['ratio_max']) for result in compared)
    grid[0][0].set_ylim(0, min(1.05 * largest, 1.6 * max(medians)))  # a disturbed round may be far beyond
    by_timm = all(result['baseline'].startswith('timm') for result in compared)
    for line in grid:
        line[0].set_ylabel(f'times as fast as {"timm" if by_timm else "the baseline"}')
    handles = [Patch(facecolor=_COLORS[kind], label=kind.replace('plain', 'plain backbone')) for kind in kinds]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 6), frameon=False, fontsize=9)


def _kind(result: Result) -> str:
    return f'{result["side"]} {result["form"].removesuffix(GRAPH)}'


def _draw_bars(axes: Any, results: Sequence[Result], kinds: Sequence[str]) -> None:
    x = 0.0
    ticks = []
    by_arch = _grouped(results, 'arch')
    for bars in by_arch.values():
        ticks.append(x + (len(bars) - 1) / 2)
        for result in sorted(bars, key=lambda bar: kinds.index(_kind(bar))):
            median, lowest, highest = (float(result[f'ratio_{name}']) for name in ('median', 'min', 'max'))
            style = dict(color=_COLORS[_kind(result)], hatch='//' if result['form'].endswith(GRAPH) else '')
            spread = [[median - lowest], [highest - median]]
            axes.bar(x, median, width=0.9, **style, yerr=spread, ecolor='#333333', capsize=2, zorder=2)
            axes.text(x + 0.04, 0.03, f'{median:.2f}', ha='center', va='bottom', fontsize=8, zorder=4, bbox=_TEXT_BOX)
            x += 1
        x += 0.8
    axes.axhline(1, color='black', linewidth=1, zorder=3)
    axes.set_xticks(ticks, [arch for (arch,) in by_arch], fontsize=9)
    axes.tick_params(labelleft=True)
    axes.grid(axis='y', color='#e5e5e5', zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlim(-0.8, max(x - 0.8, 6))  # few bars are no wider than many


def _draw_scaling(figure: Any, results: Sequence[Result], axis: str) -> None:
    """Columns are tasks and dtypes, rows time and memory, both axes logarithmic; ours solid, timm's dashed."""
    panels = _grouped(results, 'task', 'dtype', 'memory_format')
    measures = [name for name in _MEASURES if any(result[name] for result in results)]
    figure.set_size_inches(5.2 * len(panels), 3.3 * len(measures) + 1.0)
    grid = figure.subplots(len(measures), len(panels), squeeze=False)
    for column, (panel, members) in enumerate(panels.items()):
        for line, measure in enumerate(measures):
            axes = grid[line][column]
            _draw_lines(axes, members, axis, measure)
            if not line:
                axes.set_title(', '.join(panel), fontsize=10)
            axes.set_ylabel(_MEASURES[measure][0])
            axes.set_xlabel(_AXIS_LABELS[axis])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=9)


def _draw_lines(axes: Any, results: Sequence[Result], axis: str, measure: str) -> None:
    from matplotlib.ticker import LogLocator

    styles = {'ours': '-', 'timm': '--', 'plain': ':'}
    markers = dict(zip(FORMS, itertools.cycle('os^vDPx'), strict=False))
    colors: dict[str, str] = {}
    lines: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for result in results:
        name, x = _point(result, axis)
        colors.setdefault(name, _LINE_COLORS[len(colors) % len(_LINE_COLORS)])
        if result[measure]:
            line = lines.setdefault((name, result['side'], result['form']), [])
            line.append((x, float(result[measure]) / _MEASURES[measure][1]))
    if not lines:
        axes.set_visible(False)
        return
    for (name, side, form), line in sorted(lines.items(), key=lambda item: list(colors).index(item[0][0])):
        style = dict(linestyle=styles[side], marker=markers[form], color=colors[name], markersize=4, linewidth=1.3)
        axes.plot(*zip(*sorted(line), strict=True), label=f'{name} {side} {form}', **style)
    ticks = sorted({x for line in lines.values() for x, _ in line})
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.grid(color='#e5e5e5', which='both')
    axes.spines[['top', 'right']].set_visible(False)


def _point(result: Result, axis: str) -> tuple[str, float]:
    """The name of the line that a result belongs to, and its place on the axis.

    Along depth, a line is a kind of block: models of 18 and 34 layers have basic blocks.
    """
    arch = result['arch']
    if axis != 'depth':
        return arch, float(result['size' if axis == 'resolution' else axis])
    digits = re.search(r'\d+', arch)
    depth = digits[0] if digits else '1'
    name = arch.replace(depth, '*', 1)
    return f'{name} basic' if depth in ('18', '34') else name, float(depth)
