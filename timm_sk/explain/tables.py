"""The numbers of an explanation or a study as rows of a CSV."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .explanations import Explanation
from .intervals import Estimate
from .scale_study import Study

IMAGE_COLUMNS = ('image', 'scale', 'unit', 'quantity', 'branch', 'kernel_extent', 'channel', 'value')
STUDY_COLUMNS = ('class', 'images', 'unit', 'quantity', 'scale', 'mean', 'low', 'high')

Row = tuple[Any, ...]


def image_rows(explanation: Explanation, names: Sequence[str]) -> Iterator[Row]:
    """Rows of `IMAGE_COLUMNS`: quantities of every unit, then the attention of the chosen units by channel.

    Branches and channels count from 1; extents and fields are in pixels, as in `Explanation`. In place of a channel, a
    map of LSKNet has row and column, such as 3/5.
    """
    quantities = {'difference': explanation.differences, 'expected_kernel_extent': explanation.expected_kernel_extents}
    if explanation.receptive_fields is not None:
        quantities['receptive_field'] = explanation.receptive_fields
    for p, image in enumerate(names):
        for s, scale in enumerate(explanation.scales):
            for quantity, values in quantities.items():
                for unit, value in zip(explanation.units, values[p, s], strict=True):
                    if not np.isnan(value):
                        yield (image, f'{scale:g}', unit, quantity, '', '', '', f'{value:.6g}')
            for unit, weights in explanation.attention.items():
                extents = explanation.kernel_extents[explanation.units.index(unit)]
                for m, extent in enumerate(extents):
                    for place, value in np.ndenumerate(weights[p, s, m]):
                        channel = '/'.join(str(number + 1) for number in place)
                        yield (image, f'{scale:g}', unit, 'attention', m + 1, extent, channel, f'{value:.6g}')


def study_rows(study: Study, *, by_class: bool) -> Iterator[Row]:
    """Rows of `STUDY_COLUMNS`: of all images, with an empty class, then of each class that has images.

    The quantity is `difference`, or `shift` for that at the last scale minus that at the first.
    """
    yield from _rows('', int(study.counts.sum()), study.units, study.scales, study.overall, study.shift)
    for k, name in enumerate(study.class_names if by_class else ()):
        if study.counts[k]:
            levels, shift = study.by_class[k], study.shift_by_class[k]
            yield from _rows(name, int(study.counts[k]), study.chosen, study.scales, levels, shift)


def _rows(
    name: str, count: int, units: Sequence[str], scales: Sequence[float], levels: Estimate, shift: Estimate
) -> Iterator[Row]:
    for u, unit in enumerate(units):
        for s, scale in enumerate(scales):
            yield (name, count, unit, 'difference', f'{scale:g}', *_cells(levels[s, u]))
        yield (name, count, unit, 'shift', '', *_cells(shift[u]))


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    return f'{estimate.mean:.6g}', f'{estimate.low:.6g}', f'{estimate.high:.6g}'
