"""The output folder of an explanation or a study: figures, a CSV of every number, one HTML page."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..atomic_io import atomic_dir, require_empty_dir
from ..csv_files import write_csv
from . import figures
from .explanations import Explanation
from .page import Figure, Section, Table, render_page
from .scale_study import Study
from .tables import IMAGE_COLUMNS, STUDY_COLUMNS, Row, image_rows, study_rows
from .zoom import scale_label

NUMBERS, PAGE = 'numbers.csv', 'report.html'
MAX_DRAWN = 24  # images with figures of their own
_READING = (
    'Attention is the weight that a unit gives each of its branches, by channel; over the branches it sums to 1. The '
    'attention difference is the weight of the largest kernel minus that of the smallest, averaged over the channels: '
    'above 0 a unit prefers the large kernel. If all kernels are equal, it is the last branch minus the first. LSKNet '
    'weighs positions in place of channels: each kernel has a map between 0 and 1.'
)
_FIELDS = (
    'The expected kernel extent is the mean of the kernel extents of the branches by their weights. The effective '
    'receptive field is the side of a square of as many pixels as have a gradient above 4.55 % of the largest on the '
    'center of the output of the unit; it ends where the image does.'
)


def write_explanation(
    folder: Path, explanation: Explanation, images: Sequence[Image.Image], names: Sequence[str], *, model_name: str
) -> None:
    """Write the folder of an explanation, atomically; raises ValueError if it is there and not empty."""
    scales = _listed(explanation.scales)
    alt = 'Attention difference, expected kernel extent and receptive field of each unit; numbers in the table below.'
    sections = [Section(title='How to read this', text=[f'Scales: {scales}.', _READING, _FIELDS])]
    if len(images) > 1:
        png = figures.as_png(figures.depth_figure(explanation))
        figure = Figure(name='depth.png', png=png, alt=alt, caption='By depth, mean of all images.')
        title = f'Mean of {len(images)} images'
        sections.append(Section(title=title, figures=[figure], table=explanation_table(explanation)))
    for index, (image, name) in enumerate(zip(images[:MAX_DRAWN], names, strict=False)):
        stem = f'{index + 1:02}-{_file_name(name)}'
        parts = 'position' if figures.is_spatial(explanation) else 'channel'
        channels = Figure(
            name=f'{stem}-channels.png',
            png=figures.as_png(figures.channels_figure(explanation, image, index)),
            alt=f'{name} at {scales}, and the attention of each {parts} in {", ".join(explanation.attention)}.',
            caption=f'Crops, and the attention by {parts}.',
        )
        png = figures.as_png(figures.depth_figure(explanation, index))
        depth = Figure(name=f'{stem}-depth.png', png=png, alt=alt, caption='By depth.')
        sections.append(Section(title=name, figures=[channels, depth], table=explanation_table(explanation, index)))
    if len(images) > MAX_DRAWN:
        text = f'{len(images) - MAX_DRAWN} more images without figures; their numbers are in {NUMBERS}.'
        sections.append(Section(title='More images', text=[text]))
    numbers = [IMAGE_COLUMNS, *image_rows(explanation, names)]
    _write(folder, f'{model_name}: attention as the object grows', sections, numbers)


def write_study(folder: Path, study: Study, *, model_name: str, data_name: str, by_class: bool) -> None:
    """Write the folder of a study, atomically; raises ValueError if it is there and not empty."""
    count, scales = int(study.counts.sum()), _listed(study.scales)
    intervals = f'Intervals are {study.confidence:.0%} t-intervals over the images, for this one training run.'
    depth = Figure(
        name='depth.png',
        png=figures.as_png(figures.study_figure(study)),
        alt='Mean attention difference of every unit at each scale; numbers in the table below.',
        caption=f'Top: mean over {count} images. Bottom: shift from the first to the last scale.',
    )
    sections = [
        Section(title='How to read this', text=[f'{count} images of {data_name}, at {scales}.', _READING, intervals]),
        Section(title='By depth', figures=[depth], table=study_table(study)),
    ]
    if by_class:
        png = figures.as_png(figures.classes_figure(study))
        alt = f'Mean attention difference of each class in {", ".join(study.chosen)}; shifts in the table below.'
        figure = Figure(name='classes.png', png=png, alt=alt, caption='By class, with intervals.')
        columns = ['class', 'images', *(f'{unit}, shift' for unit in study.chosen)]
        rows = [
            [name, str(study.counts[k]), *(f'{shift:+.3f}' for shift in study.shift_by_class.mean[k])]
            for k, name in enumerate(study.class_names)
            if study.counts[k]
        ]
        sections.append(Section(title='By class', figures=[figure], table=(columns, rows)))
    numbers = [STUDY_COLUMNS, *study_rows(study, by_class=by_class)]
    _write(folder, f'{model_name} on {data_name}: attention as objects grow', sections, numbers)


def study_table(study: Study) -> Table:
    """Columns and rows of the means over all images, a row for each unit."""
    rows = [
        [
            unit,
            *(f'{mean:+.3f}' for mean in study.overall.mean[:, u]),
            f'{study.shift.mean[u]:+.3f}',
            f'{study.shift.low[u]:+.3f} to {study.shift.high[u]:+.3f}',
        ]
        for u, unit in enumerate(study.units)
    ]
    return ['unit', *map(scale_label, study.scales), 'shift', 'interval of the shift'], rows


def explanation_table(explanation: Explanation, index: int | None = None) -> Table:
    """Columns and rows of one image, or of the means over all, a row for each unit."""
    columns = ['unit', 'kernels']
    kernels = ('/'.join(map(str, extents)) for extents in explanation.kernel_extents)
    rows = [[unit, extents] for unit, extents in zip(explanation.units, kernels, strict=True)]
    quantities = (('difference', explanation.differences, '+.3f'), ('field', explanation.receptive_fields, '.1f'))
    for name, values, form in quantities:
        if values is not None:
            columns += [f'{name} {scale_label(scale)}' for scale in explanation.scales]
            shown = values.mean(axis=0) if index is None else values[index]  # [S, U]
            for row, numbers in zip(rows, shown.T, strict=True):
                row += ['' if np.isnan(number) else format(number, form) for number in numbers]
    return columns, rows


def _listed(scales: Sequence[float]) -> str:
    return ', '.join(map(scale_label, scales))


def _file_name(name: str) -> str:
    """An image's name without characters that file names may not have."""
    return re.sub(r'[^\w-]', '-', PurePath(name).stem).strip('-')[:40] or 'image'


def _write(folder: Path, title: str, sections: Sequence[Section], numbers: Sequence[Row]) -> None:
    require_empty_dir(folder)
    with atomic_dir(folder) as new:
        write_csv(new / NUMBERS, numbers)
        for figure in (figure for section in sections for figure in section.figures):
            (new / figure.name).write_bytes(figure.png)
        (new / PAGE).write_bytes(render_page(title, sections))
