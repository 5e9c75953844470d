"""The folder of an explanation or a study: figures, a CSV of every number, one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..atomic_io import atomic_dir, require_empty_dir
from . import figures
from .explanations import Explanation
from .page import Figure, Section, render_page
from .scale_study import Study
from .tables import PICTURE_COLUMNS, STUDY_COLUMNS, as_csv, picture_rows, study_rows
from .zoom import times

NUMBERS, PAGE = 'numbers.csv', 'report.html'
MOST_DRAWN = 24  # pictures with figures of their own
_READING = (
    'Attention is the weight that a unit gives each of its branches, by channel; over the branches it sums to 1. The '
    'attention difference is the weight of the largest kernel minus that of the smallest, averaged over the channels: '
    'above 0 a unit prefers the large kernel. Where all kernels are equal it is the last branch minus the first.'
)
_FIELDS = (
    'The expected kernel extent is the sum of the extents of the branches, each times its weight. The effective '
    'receptive field is the side of a square of as many pixels as have a gradient above 4.55 % of the largest on the '
    'middle of the output of the unit; it ends where the picture does.'
)


def write_explanation(
    folder: Path, explanation: Explanation, pictures: Sequence[Image.Image], names: Sequence[str], *, model_name: str
) -> None:
    """Write the folder of an explanation, whole or not at all.

    Args:
        folder: Not there yet, or empty.
        explanation: The numbers.
        pictures: As they were explained.
        names: Of the pictures.
        model_name: Of the model.

    Raises:
        ValueError: If the folder holds anything, or matplotlib is not installed.
        OSError: If it cannot be written.
    """
    figures.require_matplotlib()
    scales = _listed(explanation.scales)
    files = {NUMBERS: as_csv(PICTURE_COLUMNS, picture_rows(explanation, names))}
    sections = [Section(title='How to read this', text=[f'Object at {scales}.', _READING, _FIELDS])]
    if len(pictures) > 1:
        png = files['depth.png'] = figures.as_png(figures.depth_figure(explanation))
        figure = Figure(png=png, alt=_depth_alt(explanation, None), caption='By depth, mean of all pictures.')
        sections.append(Section(title=f'Mean of {len(pictures)} pictures', figures=[figure]))
    for index, (picture, name) in enumerate(zip(pictures[:MOST_DRAWN], names, strict=False)):
        stem = f'{index + 1:02}-{_file_name(name)}'
        channels = figures.as_png(figures.channels_figure(explanation, picture, index))
        depth = figures.as_png(figures.depth_figure(explanation, index))
        files |= {f'{stem}-channels.png': channels, f'{stem}-depth.png': depth}
        units = ', '.join(explanation.attention)
        sections.append(
            Section(
                title=name,
                figures=[
                    Figure(
                        png=channels,
                        alt=f'{name} at {scales}, and for {units} the attention of each channel at each scale; the '
                        f'numbers are in {NUMBERS}.',
                        caption='What the model sees, and the attention of the largest kernel by channel.',
                    ),
                    Figure(png=depth, alt=_depth_alt(explanation, index), caption='By depth.'),
                ],
                columns=('unit', 'kernels', *_heads(explanation)),
                rows=_cells(explanation, index),
            )
        )
    if len(pictures) > MOST_DRAWN:
        text = f'{len(pictures) - MOST_DRAWN} more pictures have no figures here; their numbers are in {NUMBERS}.'
        sections.append(Section(title='More pictures', text=[text]))
    files[PAGE] = render_page(f'{model_name}: what the selection does as the object grows', sections)
    _write(folder, files)


def write_study(folder: Path, study: Study, *, model_name: str, data_name: str, by_class: bool) -> None:
    """Write the folder of a study, whole or not at all.

    Args:
        folder: Not there yet, or empty.
        study: The numbers.
        model_name: Of the model.
        data_name: Of the data.
        by_class: Whether to tell classes apart.

    Raises:
        ValueError: If the folder holds anything, or matplotlib is not installed.
        OSError: If it cannot be written.
    """
    figures.require_matplotlib()
    count, scales = int(study.counts.sum()), _listed(study.scales)
    intervals = (
        f'Intervals hold {study.confidence:.0%} of {study.replicates} bootstrap replicates over the pictures; they say '
        'nothing about another training run.'
    )
    files = {NUMBERS: as_csv(STUDY_COLUMNS, study_rows(study, by_class=by_class))}
    png = files['depth.png'] = figures.as_png(figures.study_figure(study))
    rows = study_cells(study)
    sections = [
        Section(title='How to read this', text=[f'{count} pictures of {data_name}, at {scales}.', _READING, intervals]),
        Section(
            title='By depth',
            figures=[
                Figure(
                    png=png,
                    alt='Mean attention difference of every unit at each scale; the table below has the numbers.',
                    caption=f'Above: mean over {count} pictures. Below: its shift from the first to the last scale.',
                )
            ],
            columns=study_heads(study),
            rows=rows,
        ),
    ]
    if by_class:
        png = files['classes.png'] = figures.as_png(figures.classes_figure(study))
        figure = Figure(
            png=png,
            alt=f'Mean attention difference of each class in {", ".join(study.chosen)}; a table of its shifts follows.',
            caption='By class, with intervals.',
        )
        sections.append(
            Section(
                title='By class',
                figures=[figure],
                columns=('class', 'pictures', *(f'{unit}, shift' for unit in study.chosen)),
                rows=[
                    (
                        name,
                        str(study.counts[k]),
                        *(f'{study.shift_by_class.mean[k, v]:+.3f}' for v in range(len(study.chosen))),
                    )
                    for k, name in enumerate(study.class_names)
                    if study.counts[k]
                ],
            )
        )
    files[PAGE] = render_page(f'{model_name} on {data_name}: the selection as objects grow', sections)
    _write(folder, files)


def study_heads(study: Study) -> list[str]:
    """Heads of the table of a study."""
    return ['unit', *map(times, study.scales), 'shift', 'interval of the shift']


def study_cells(study: Study) -> list[list[str]]:
    """The table of a study: a row for each unit."""
    return [
        [
            unit,
            *(f'{study.overall.mean[s, u]:+.3f}' for s in range(len(study.scales))),
            f'{study.shift.mean[u]:+.3f}',
            f'{study.shift.low[u]:+.3f} to {study.shift.high[u]:+.3f}',
        ]
        for u, unit in enumerate(study.units)
    ]


def explanation_table(explanation: Explanation) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table of the means over all pictures."""
    return ['unit', 'kernels', *_heads(explanation)], _cells(explanation, None)


def _heads(explanation: Explanation) -> list[str]:
    heads = [f'difference {times(scale)}' for scale in explanation.scales]
    if explanation.receptive_fields is not None:
        heads += [f'field {times(scale)}' for scale in explanation.scales]
    return heads


def _cells(explanation: Explanation, index: int | None) -> list[list[str]]:
    def shown(values: np.ndarray) -> np.ndarray:
        return values.mean(axis=0) if index is None else values[index]  # [S, U]

    differences = shown(explanation.differences)
    fields = None if explanation.receptive_fields is None else shown(explanation.receptive_fields)
    return [
        [
            unit,
            '/'.join(map(str, explanation.kernel_extents[u])),
            *('' if np.isnan(value) else f'{value:+.3f}' for value in differences[:, u]),
            *([] if fields is None else (f'{value:.1f}' for value in fields[:, u])),
        ]
        for u, unit in enumerate(explanation.units)
    ]


def _depth_alt(explanation: Explanation, index: int | None) -> str:
    cells = _cells(explanation, index)
    count = len(explanation.scales)
    lines = [f'{row[0]} {", ".join(row[2 : 2 + count])}' for row in cells if row[2]]
    return f'Attention difference by unit at {_listed(explanation.scales)}: {"; ".join(lines) or "none"}.'


def _listed(scales: Sequence[float]) -> str:
    return ', '.join(map(times, scales))


def _file_name(name: str) -> str:
    """What of a picture's name may stand in that of a file."""
    stem = ''.join(letter if letter.isalnum() or letter in '-_' else '-' for letter in PurePath(name).stem)
    return stem.strip('-')[:40] or 'picture'


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    require_empty_dir(folder)
    with atomic_dir(folder) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
