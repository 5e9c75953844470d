"""Figures of an explanation or a study, also for print in black and white. Needs matplotlib, the extra `explain`."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import to_rgb
from .explanations import Explanation
from .intervals import Estimate
from .scale_study import Study
from .units import largest_kernel
from .zoom import scale_label, zoom_in

MAX_NAMED = 40  # classes that get a point with their name
_DIFFERENCE = 'attention difference,\nlargest minus smallest kernel'
_LEVELS = ('low', 'middle', 'high')

# One for each scale; they differ in shade, dashes and marker
_STYLES: tuple[dict[str, Any], ...] = (
    dict(color='#8c8c8c', linestyle=':', marker='o', markerfacecolor='white'),
    dict(color='#3182bd', linestyle='--', marker='s'),
    dict(color='black', linestyle='-', marker='^'),
    dict(color='#a63603', linestyle='-.', marker='D', markerfacecolor='white'),
    dict(color='#54278f', linestyle=(0, (5, 1)), marker='v'),
    dict(color='#006d2c', linestyle=(0, (1, 1)), marker='X'),
)


def channels_figure(explanation: Explanation, image: Image.Image, index: int) -> Any:
    """One image: its crops, and the attention of the largest kernel by channel, or of every kernel by position."""
    scales, chosen = explanation.scales, list(explanation.attention)
    figure = _figure(3.6 * max(len(chosen), 2), 5.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    for axes, scale in zip(above.subplots(1, len(scales), squeeze=False)[0], scales, strict=True):
        axes.imshow(zoom_in(to_rgb(image), scale))
        axes.set_title(scale_label(scale), fontsize=10)
        axes.set_axis_off()
    if is_spatial(explanation):
        _draw_maps(below, explanation, index)
        return figure
    panels = below.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axes, unit in zip(panels, chosen, strict=True):
        extents = explanation.kernel_extents[explanation.units.index(unit)]
        weights = explanation.attention[unit][index, :, largest_kernel(extents)]  # [S, C]
        for s, scale in enumerate(scales):
            style = _style(s, markevery=(s, max(1, weights.shape[1] // 8)))
            axes.plot(np.arange(1, weights.shape[1] + 1), np.sort(weights[s]), label=scale_label(scale), **style)
        kernels = ', '.join(f'{extent}x{extent}' for extent in extents)
        axes.set_title(f'{unit}, kernels {kernels}', fontsize=10)
        axes.set_xlabel('channel, sorted at each scale')
        axes.set_ylim(-0.02, 1.02)
        _plain(axes)
    panels[0].set_ylabel('attention of the largest kernel')
    _legend(below, panels[0])
    return figure


def is_spatial(explanation: Explanation) -> bool:
    """Whether the units weigh positions, as LSKNet's do."""
    return all(weights.ndim == 5 for weights in explanation.attention.values())


def _draw_maps(figure: Any, explanation: Explanation, index: int) -> None:
    """Draw the maps of the chosen units from black (0) to white (1): a row for each kernel, a column for each scale."""
    panels = np.atleast_1d(figure.subfigures(1, len(explanation.attention)))
    for panel, (unit, maps) in zip(panels, explanation.attention.items(), strict=True):
        panel.suptitle(unit, fontsize=10)
        extents = explanation.kernel_extents[explanation.units.index(unit)]
        for m, row in enumerate(panel.subplots(len(extents), len(explanation.scales), squeeze=False)):
            row[0].set_ylabel(f'{extents[m]}x{extents[m]}', fontsize=9)
            for s, axes in enumerate(row):
                axes.imshow(maps[index, s, m], cmap='gray', vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])


def depth_figure(explanation: Explanation, index: int | None = None) -> Any:
    """One image, or the mean of all: difference, expected kernel extent and receptive field of every unit."""
    panels = [
        (_DIFFERENCE, explanation.differences),
        ('expected kernel extent,\npixels of its input', explanation.expected_kernel_extents),
    ]
    if explanation.receptive_fields is not None:
        panels.append(('effective receptive field,\npixels of the model input', explanation.receptive_fields))
    figure = _figure(max(5.5, 2.5 + 0.35 * len(explanation.units)), 2.3 * len(panels) + 0.6)
    rows = figure.subplots(len(panels), 1, sharex=True)
    for axes, (label, values) in zip(rows, panels, strict=True):
        shown = values.mean(axis=0) if index is None else values[index]  # [S, U]
        for s, scale in enumerate(explanation.scales):
            axes.plot(range(len(explanation.units)), shown[s], label=scale_label(scale), **_style(s))
        axes.set_ylabel(label, fontsize=9)
        _plain(axes, zero_line=label == _DIFFERENCE and not np.isnan(values).all())
    _name_units(rows[-1], explanation.units)
    _legend(figure, rows[0])
    return figure


def study_figure(study: Study) -> Any:
    """All images: the mean difference of every unit at each scale, and the shift from the first to the last."""
    figure = _figure(max(6.0, 3.0 + 0.45 * len(study.units)), 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_levels(upper, study.scales, [study.overall[s] for s in range(len(study.scales))])
    _with_intervals(lower, range(len(study.units)), study.shift, color='black', linestyle='none', marker='o')
    upper.set_ylabel(_DIFFERENCE)
    lower.set_ylabel(f'shift from {scale_label(study.scales[0])}\nto {scale_label(study.scales[-1])}')
    for axes in (upper, lower):
        _plain(axes, zero_line=True)
    _name_units(lower, study.units)
    _legend(figure, upper)
    return figure


def classes_figure(study: Study) -> Any:
    """Each class: the mean difference in the chosen units at each scale; many classes as sorted lines."""
    seen = np.flatnonzero(study.counts)
    is_named = len(seen) <= MAX_NAMED
    width = max(6.0, 3.0 + 0.38 * len(seen)) if is_named else 8.0
    figure = _figure(width, 2.3 * len(study.chosen) + 0.8)
    rows = figure.subplots(len(study.chosen), 1, sharex=True, squeeze=False)[:, 0]
    for v, (axes, unit) in enumerate(zip(rows, study.chosen, strict=True)):
        if is_named:
            points = [study.by_class[seen, s, v] for s in range(len(study.scales))]
            _draw_levels(axes, study.scales, points, linestyle='none')
        else:
            order = seen[np.argsort(study.by_class.mean[seen, 0, v], kind='stable')]
            for s, scale in enumerate(study.scales):
                levels, style = study.by_class[order, s, v], _style(s) | dict(marker='none')
                axes.fill_between(range(1, len(seen) + 1), levels.low, levels.high, color='#bdbdbd', alpha=0.5, lw=0)
                axes.plot(range(1, len(seen) + 1), levels.mean, label=scale_label(scale), **style)
        axes.set_ylabel(_DIFFERENCE, fontsize=8)
        level = f'{_LEVELS[v]}: ' if len(study.chosen) == len(_LEVELS) else ''
        axes.set_title(f'{level}{unit}', fontsize=10, loc='left')
        _plain(axes, zero_line=True)
    if is_named:
        names = [_short(study.class_names[k]) for k in seen]
        rows[-1].set_xticks(range(len(seen)), names, rotation=45, ha='right', rotation_mode='anchor')
        rows[-1].set_xlabel('class')
    else:
        rows[-1].set_xlabel(f'class, sorted in each unit by its difference at {scale_label(study.scales[0])}')
    _legend(figure, rows[0])
    return figure


def as_png(figure: Any) -> bytes:
    """Bytes of a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110)
    return file.getvalue()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained', facecolor='white')


def _style(index: int, **more: Any) -> dict[str, Any]:
    return dict(_STYLES[index % len(_STYLES)], linewidth=1.4, markersize=4.5, **more)


def _legend(figure: Any, axes: Any) -> None:
    """Draw the legend of a panel above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), 6)
    figure.legend(handles, labels, loc='outside upper center', ncols=columns, frameon=False, title='size of the object')


def _plain(axes: Any, *, zero_line: bool = False) -> None:
    if zero_line:
        axes.axhline(0, color='#8c8c8c', linewidth=0.8, zorder=1)
    axes.grid(color='#e5e5e5')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def _name_units(axes: Any, units: Sequence[str]) -> None:
    names = [_short(unit) for unit in units]
    axes.set_xticks(range(len(units)), names, rotation=60, ha='right', rotation_mode='anchor')
    axes.set_xlabel('unit, from low to high')


def _with_intervals(axes: Any, places: Any, estimate: Estimate, **style: Any) -> None:
    spread = np.stack([estimate.mean - estimate.low, estimate.high - estimate.mean]).clip(min=0)
    axes.errorbar(places, estimate.mean, yerr=spread, capsize=2.5, elinewidth=1, **style)


def _draw_levels(axes: Any, scales: Sequence[float], levels: Sequence[Estimate], **style: Any) -> None:
    """Draw the points of each scale beside those of the others, so that intervals do not overlap."""
    for s, (scale, estimate) in enumerate(zip(scales, levels, strict=True)):
        places = np.arange(len(estimate.mean)) + 0.5 * ((s + 0.5) / len(scales) - 0.5)
        _with_intervals(axes, places, estimate, label=scale_label(scale), **_style(s) | style)


def _short(name: str) -> str:
    return (name if len(name) <= 24 else f'{name[:23]}…').replace('$', r'\$')
