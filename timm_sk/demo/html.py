"""An answer as HTML: tables whose cells have bars and numbers, so that a screen reader reads the numbers."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO

from PIL import Image

from .analysis import Analysis, UnitDifference

_SEEN_SIDE = 192
_LIMITS = (0.25, 0.5, 1.0)  # few, so that the axis stays the same while the slider moves


def message(text: str) -> str:
    """An error or a hint in the place of an answer."""
    return f'<p class="sk-message" role="alert">{escape(text)}</p>'


def answer(analysis: Analysis, name: str, note: str = '') -> str:
    """A model's answer.

    Args:
        analysis: Classes and attention.
        name: Name of the model.
        note: Sentence on the model, if any.
    """
    return f"""<section class="sk-answer" aria-label="{escape(name)}">
<div class="sk-result">{_seen(analysis)}{_predictions(analysis)}</div>
{_attention(analysis)}{f'<p>{escape(note)}</p>' if note else ''}
</section>"""


def _seen(analysis: Analysis) -> str:
    image = analysis.seen.copy()
    image.thumbnail((_SEEN_SIDE, _SEEN_SIDE))
    alternative = f'The middle of the image, enlarged {analysis.scale:g} times'
    return f"""<figure class="sk-seen"><img src="{data_uri(image)}" alt="{alternative}">
<figcaption>seen at {analysis.scale:g}×</figcaption></figure>"""


def data_uri(image: Image.Image) -> str:
    """A small image as a data URI."""
    file = BytesIO()
    image.save(file, 'PNG', compress_level=1)
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def _predictions(analysis: Analysis) -> str:
    rows = (
        f"""<tr><th scope="row" title="{escape(label)}">{escape(label)}</th>
<td class="sk-track" aria-hidden="true"><i class="sk-bar" style="left:0;width:{probability:.2%}"></i></td>
<td class="sk-number">{probability:.1%}</td></tr>"""
        for label, probability in zip(analysis.labels, analysis.probabilities, strict=True)
    )
    return _table('Likeliest classes', ('class', 'bar', 'probability'), rows, 'sk-classes')


def _attention(analysis: Analysis) -> str:
    if not analysis.units:
        return message('This model has no unit with attention.')
    largest = max(max(abs(unit.scaled), abs(unit.unscaled)) for unit in analysis.units)
    limit = next(limit for limit in (*_LIMITS, largest) if limit >= largest)
    caption = f"""Attention by depth
<small>largest kernel minus smallest, mean over channels; bar: {analysis.scale:g}×, line: 1×</small>"""
    columns = ('unit', 'bar', f'at {analysis.scale:g}×', 'change from 1×')
    axis = f"""<tr class="sk-axis" aria-hidden="true"><td></td>
<td><span>−{limit:g}<em> smallest</em></span><span>0</span><span><em>largest </em>+{limit:g}</span></td>
<td></td><td>change</td></tr>"""
    rows = [axis, *(_unit_row(unit, limit) for unit in analysis.units)]
    kind = 'sk-units sk-many' if len(analysis.units) > 12 else 'sk-units'
    return _table(caption, columns, rows, kind)


def _unit_row(unit: UnitDifference, limit: float) -> str:
    end, mark = (0.5 + 0.5 * value / limit for value in (unit.scaled, unit.unscaled))
    left, width = min(end, 0.5), abs(end - 0.5)
    return f"""<tr><th scope="row">{escape(unit.name)}</th>
<td class="sk-track sk-signed" aria-hidden="true"><i class="sk-bar" style="left:{left:.2%};width:{width:.2%}"></i>
<i class="sk-mark" style="left:{mark:.2%}"></i></td>
<td class="sk-number">{_signed(unit.scaled)}</td>
<td class="sk-number sk-change">{_signed(unit.scaled - unit.unscaled)}</td></tr>"""


def _signed(value: float) -> str:
    return f'{round(value, 3) + 0.0:+.3f}'.replace('-', '−')  # zero has no minus


def _table(caption: str, columns: Iterable[str], rows: Iterable[str], kind: str) -> str:
    heads = ''.join(f'<th scope="col">{column}</th>' for column in columns)
    return f"""<table class="sk-bars {kind}"><caption>{caption}</caption>
<thead class="sk-unseen"><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"""
