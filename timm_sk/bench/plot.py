"""Results as a picture: ratio bars, or time and memory along an axis. Needs matplotlib, the extra `bench`."""

import itertools
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .matrix import FORMS, GRAPH

Result = dict[str, str]

_COLOURS = {
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
_READING = 'Median, min and max of the ratios of each round; compiled forms against the same, the rest against eager'
_LABEL = dict(facecolor='white', edgecolor='none', pad=0.8, alpha=0.75)
_LINES = ('#3182bd', '#e6550d', '#31a354', '#756bb1', '#636363')
_AXES = {
    'batch': ('batch', 'pictures in a step'),
    'resolution': ('size', 'height and width, pixels'),
    'branches': ('branches', 'branches M'),
    'depth': ('depth', 'layers'),
}
_MEASURES = {
    'median_ms': ('ms per step', 1.0),
    'peak_bytes': ('peak MB of a step', 1e6),
    'saved_bytes_per_image': ('MB saved per picture', 1e6),
}


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        ValueError: If matplotlib is not installed; it says how to install it.
    """
    if find_spec('matplotlib') is None:
        raise ValueError('Plots are drawn by matplotlib, which is not installed: pip install "timm_sk[bench]".')


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw rows of the CSV: scaling where the rows are of one axis, else ratios. Of repeated rows the last counts.

    Args:
        results: Text by column.
        path: Where to, with an ending that matplotlib knows, such as .png.

    Raises:
        ValueError: If there is nothing to draw, or rows of several axes, or the ending is unknown.
    """
    require_matplotlib()
    figure_of(results).savefig(path, dpi=150)


def figure_of(results: Sequence[Result]) -> Any:
    """The `matplotlib.figure.Figure` that `draw` saves."""
    from matplotlib.figure import Figure

    timed = {_key(result): result for result in results if result['median_ms'] and result['side'] != 'floor'}
    axes = {result['scaling'] for result in timed.values()}
    if len(axes) != 1:
        raise ValueError(f'A plot needs timed rows of one kind, got {", ".join(sorted(axes)) or "no timed row"}.')
    figure = Figure(layout='constrained', facecolor='white')
    axis = axes.pop()
    if axis:
        _draw_scaling(figure, list(timed.values()), axis)
    else:
        _draw_ratios(figure, list(timed.values()))
    return figure


def _key(result: Result) -> tuple[str, ...]:
    names = ('arch', 'branches', 'scaling', 'side', 'form', 'dtype', 'memory_format', 'task', 'batch', 'size', 'device')
    return tuple(result[name] for name in names)


def _panel(result: Result) -> tuple[str, ...]:
    return tuple(result[name] for name in ('task', 'dtype', 'memory_format', 'batch', 'size'))


def _unique(results: Sequence[Result], *names: str) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(tuple(result[name] for name in names) for result in results))


def _setting(results: Sequence[Result]) -> str:
    """What ran where, for the title."""
    parts = [f'{device}, {processor.split(";")[0]}' for device, processor in _unique(results, 'device', 'processor')]
    versions = [f'torch {torch}, timm {timm}' for torch, timm in _unique(results, 'torch', 'timm')]
    return '; '.join([*parts, *versions])


def _draw_ratios(figure: Any, results: Sequence[Result]) -> None:
    """A panel per task, dtype, memory format and shape; bars by architecture and form, whiskers from min to max."""
    compared = [result for result in results if result['ratio_median'] and result['side'] != 'timm']
    panels = list(dict.fromkeys(_panel(result) for result in compared))
    if not panels:
        raise ValueError('No row has a ratio to draw.')
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    bars = max(len([r for r in compared if _panel(r) == panel]) for panel in panels)
    figure.set_size_inches(min(max(4.5, 1.5 + 0.45 * bars), 10) * columns, 4 * lines + 1)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    kinds = [kind for kind in _COLOURS if any(kind == f'{r["side"]} {r["form"]}' for r in compared)]
    for axes, panel in zip(grid.flat, panels, strict=False):
        task, dtype, memory_format, batch, size = panel
        own = [result for result in compared if _panel(result) == panel]
        _draw_bars(axes, own, kinds)
        axes.set_title(f'{task}, {dtype}, {memory_format}, {batch}x3x{size}x{size}', fontsize=10)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    by_timm = all(result['baseline'].startswith('timm') for result in compared)
    medians = [float(result['ratio_median']) for result in compared]
    most = max(float(result['ratio_max']) for result in compared)
    grid[0][0].set_ylim(0, min(1.05 * most, 1.6 * max(medians)))  # a disturbed round may be far beyond
    for line in grid:
        line[0].set_ylabel(f'times as fast as {"timm" if by_timm else "the baseline"}')
    handles = [_patch(kind) for kind in kinds]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 6), frameon=False, fontsize=9)
    figure.suptitle(f'{_READING}\n{_setting(results)}', fontsize=10)


def _patch(kind: str) -> Any:
    from matplotlib.patches import Patch

    name = kind.replace('plain', 'plain backbone')
    return Patch(facecolor=_COLOURS[kind], label=name)


def _draw_bars(axes: Any, results: Sequence[Result], kinds: Sequence[str]) -> None:
    architectures = list(dict.fromkeys(result['arch'] for result in results))
    place = 0.0
    ticks = []
    for arch in architectures:
        bars = sorted((r for r in results if r['arch'] == arch), key=lambda r: kinds.index(f'{r["side"]} {r["form"]}'))
        ticks.append(place + (len(bars) - 1) / 2)
        for result in bars:
            median, least, most = (float(result[f'ratio_{name}']) for name in ('median', 'min', 'max'))
            form = result['form'].removesuffix(GRAPH)
            look = dict(color=_COLOURS[f'{result["side"]} {form}'], hatch='' if form == result['form'] else '//')
            spread = [[median - least], [most - median]]
            axes.bar(place, median, width=0.9, **look, yerr=spread, ecolor='#333333', capsize=2, zorder=2)
            axes.text(place + 0.04, 0.03, f'{median:.2f}', ha='center', va='bottom', fontsize=8, zorder=4, bbox=_LABEL)
            place += 1
        place += 0.8
    axes.axhline(1, color='black', linewidth=1, zorder=3)
    axes.set_xticks(ticks, architectures, fontsize=9)
    axes.tick_params(labelleft=True)
    axes.grid(axis='y', color='#e5e5e5', zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlim(-0.8, max(place - 0.8, 6))  # few bars are no wider than many


def _draw_scaling(figure: Any, results: Sequence[Result], axis: str) -> None:
    """Columns are tasks and dtypes, lines time and memory, both axes logarithmic; ours solid, timm's dashed."""
    panels = _unique(results, 'task', 'dtype', 'memory_format')
    measures = [name for name in _MEASURES if any(result[name] for result in results)]
    figure.set_size_inches(5.2 * len(panels), 3.3 * len(measures) + 1.0)
    grid = figure.subplots(len(measures), len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        own = [r for r in results if (r['task'], r['dtype'], r['memory_format']) == panel]
        for line, measure in enumerate(measures):
            axes = grid[line][column]
            _draw_lines(axes, own, axis, measure)
            if not line:
                axes.set_title(', '.join(panel), fontsize=10)
            axes.set_ylabel(_MEASURES[measure][0])
            axes.set_xlabel(_AXES[axis][1])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f'Scaling with {axis}\n{_setting(results)}', fontsize=10)


def _draw_lines(axes: Any, results: Sequence[Result], axis: str, measure: str) -> None:
    from matplotlib.ticker import LogLocator

    styles = {'ours': '-', 'timm': '--', 'plain': ':'}
    markers = dict(zip(FORMS, itertools.cycle('os^vDPx'), strict=False))
    points = set()
    architectures = list(dict.fromkeys(_family(result, axis) for result in results))
    for arch in architectures:
        for side, form in _unique(results, 'side', 'form'):
            line = sorted(
                (_position(r, axis), float(r[measure]) / _MEASURES[measure][1])
                for r in results
                if (_family(r, axis), r['side'], r['form']) == (arch, side, form) and r[measure]
            )
            points |= {x for x, _ in line}
            colour = _LINES[architectures.index(arch) % len(_LINES)]
            style = dict(linestyle=styles[side], marker=markers[form], color=colour, markersize=4, linewidth=1.3)
            axes.plot(*zip(*line, strict=True), label=f'{arch} {side} {form}', **style) if line else None
    if not points:
        axes.set_visible(False)
        return
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xticks(sorted(points), [f'{point:g}' for point in sorted(points)])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.grid(color='#e5e5e5', which='both')
    axes.spines[['top', 'right']].set_visible(False)


def _position(result: Result, axis: str) -> float:
    return float(_depth(result['arch']) if axis == 'depth' else result[_AXES[axis][0]])


def _depth(arch: str) -> str:
    found = re.search(r'\d+', arch)
    return found[0] if found else '1'


def _family(result: Result, axis: str) -> str:
    """The architecture, or along depth the kind of block: 18 and 34 layers have basic ones."""
    if axis != 'depth':
        return result['arch']
    depth = _depth(result['arch'])
    name = result['arch'].replace(depth, '*', 1)
    return f'{name} basic' if depth in ('18', '34') else name
