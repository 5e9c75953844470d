"""Every number of an explanation or a study as rows of a CSV file."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .explanations import Explanation
from .scale_study import Study

PICTURE_COLUMNS = ('picture', 'scale', 'unit', 'quantity', 'branch', 'kernel_extent', 'channel', 'value')
STUDY_COLUMNS = ('class', 'pictures', 'unit', 'quantity', 'scale', 'mean', 'low', 'high')

Row = tuple[Any, ...]


def picture_rows(explanation: Explanation, names: Sequence[str]) -> Iterator[Row]:
    """Rows of `PICTURE_COLUMNS`: quantities of a unit first, then the attention of the chosen units' channels.

    Branches and channels count from 1; extents and fields are in pixels, as `Explanation` says.
    """
    quantities = {'difference': explanation.differences, 'expected_kernel_extent': explanation.expected_kernel_extents}
    if explanation.receptive_fields is not None:
        quantities['receptive_field'] = explanation.receptive_fields
    for p, picture in enumerate(names):
        for s, scale in enumerate(explanation.scales):
            for quantity, values in quantities.items():
                for unit, value in zip(explanation.units, values[p, s], strict=True):
                    if not np.isnan(value):
                        yield (picture, f'{scale:g}', unit, quantity, '', '', '', f'{value:.6g}')
            for unit, weights in explanation.attention.items():
                extents = explanation.kernel_extents[explanation.units.index(unit)]
                for m, extent in enumerate(extents):
                    for c, value in enumerate(weights[p, s, m]):
                        yield (picture, f'{scale:g}', unit, 'attention', m + 1, extent, c + 1, f'{value:.6g}')


def study_rows(study: Study, *, by_class: bool) -> Iterator[Row]:
    """Rows of `STUDY_COLUMNS`: of all pictures, whose class is empty, then of each class that has pictures.

    The quantity is `difference`, or `shift` for the last scale's minus the first's.
    """
    total = int(study.counts.sum())
    yield from _rows('', total, study.units, study.scales, study.overall, study.shift, ())
    for k, name in enumerate(study.class_names if by_class else ()):
        if study.counts[k]:
            count = int(study.counts[k])
            yield from _rows(name, count, study.chosen, study.scales, study.by_class, study.shift_by_class, (k,))


def _rows(
    name: str, count: int, units: Sequence[str], scales: Sequence[float], levels: Any, shift: Any, at: tuple[int, ...]
) -> Iterator[Row]:
    for u, unit in enumerate(units):
        for s, scale in enumerate(scales):
            yield (name, count, unit, 'difference', f'{scale:g}', *_interval(levels, (*at, s, u)))
        yield (name, count, unit, 'shift', '', *_interval(shift, (*at, u)))


def _interval(estimate: Any, at: tuple[int, ...]) -> tuple[str, str, str]:
    mean, low, high = (f'{values[at]:.6g}' for values in (estimate.mean, estimate.low, estimate.high))
    return mean, low, high


def as_csv(columns: Sequence[str], rows: Iterator[Row]) -> bytes:
    """A CSV file's bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
