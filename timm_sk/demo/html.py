"""An answer as HTML: tables whose cells have bars and numbers, so that a screen reader reads the numbers."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO

from PIL import Image

from .analysis import Analysis, UnitDifference

PAPER = 'https://arxiv.org/abs/1903.06586'


def link(url: str, text: str) -> str:
    """A link as HTML, which opens in a new tab."""
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(text)}</a>'


_PAPERS = {
    'SK': link(PAPER, 'Section 5 of the paper'),
    'SA': link('https://arxiv.org/abs/2004.08955', 'The paper on ResNeSt'),
    'LSK': link('https://arxiv.org/abs/2303.09030', 'The paper on LSKNet'),
}
_SEEN_SIDE = 192
_LIMITS = (0.25, 0.5, 1.0)  # few, so that the axis stays the same while the slider moves


def message(text: str) -> str:
    """An error or a hint in the place of an answer."""
    return f'<p class="sk-message" role="alert">{escape(text)}</p>'


def side_names(analysis: Analysis) -> tuple[str, str]:
    """What a positive and a negative difference of an answer stand for."""
    one_size = all(unit.one_size for unit in analysis.units)
    return ('last branch', 'first branch') if one_size else ('largest kernel', 'smallest kernel')


def answer(analysis: Analysis, name: str, note: str = '') -> str:
    """The answer of a model of this name, with a sentence on it, if there is one."""
    return f"""<section class="sk-answer" aria-label="{escape(name)}">
<div class="sk-result">{_seen(analysis)}{_predictions(analysis)}</div>
{f'<p>{escape(note)}</p>' if note else ''}{_attention(analysis)}
</section>"""


def _seen(analysis: Analysis) -> str:
    image = analysis.seen.copy()
    image.thumbnail((_SEEN_SIDE, _SEEN_SIDE))
    alternative = f'The input of the model: the middle of the image, enlarged {analysis.scale:g} times'
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
    caption = 'Likeliest classes <small>Softmax of the output of the model for this input.</small>'
    return _table(caption, ('class', 'bar', 'probability'), rows, 'sk-classes')


def _attention(analysis: Analysis) -> str:
    if not analysis.units:
        return '<p>This model has no units that choose among several branches: it has no attention to show.</p>'
    largest_name, smallest_name = side_names(analysis)
    largest = max(max(abs(unit.scaled), abs(unit.unscaled)) for unit in analysis.units)
    limit = next(limit for limit in (*_LIMITS, largest) if limit >= largest)
    kind = analysis.units[0].name.partition('_')[0]
    averaged = 'positions' if kind == 'LSK' else 'channels'
    caption = f"""Attention by depth
<small>The weight that a unit gives its {largest_name} minus that of its {smallest_name}, averaged over the {averaged}.
Bar: at {analysis.scale:g}×, line: at 1×. {_PAPERS.get(kind, '')}</small>"""
    columns = ('unit', 'bar', f'at {analysis.scale:g}×', 'change from 1×')
    axis = f"""<tr class="sk-axis" aria-hidden="true"><td></td>
<td><span>−{limit:g}<em> {smallest_name.split()[0]}</em></span><span>0</span>
<span><em>{largest_name.split()[0]} </em>+{limit:g}</span></td>
<td></td><td>change</td></tr>"""
    rows = [axis, *(_unit_row(unit, limit) for unit in analysis.units)]
    return _table(caption, columns, rows, 'sk-units sk-many' if len(analysis.units) > 12 else 'sk-units')


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
