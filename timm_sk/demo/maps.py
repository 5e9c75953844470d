"""Heat maps over the image: where a unit's largest kernel contributes more to its output than its smallest."""

from html import escape

import numpy as np
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from .analysis import Analysis, UnitDifference
from .html import data_uri, side_names

_SIDE = 112  # pixels of a map
_FULL = 0.5  # difference with the full colour
_STEPS = 8  # shades of a colour, few, so that the files are small
_OPACITY = 0.85
_LARGEST, _SMALLEST = (234, 88, 12), (37, 99, 235)  # as in style.css


def maps(analysis: Analysis) -> str:
    """The heat maps of all units as HTML; empty for a model without selection."""
    if not analysis.units:
        return ''
    largest, smallest = side_names(analysis)
    seen = data_uri(_resized(analysis.seen.convert('L')))
    figures = ''.join(_figure(unit, largest) for unit in analysis.units)
    title = f'Where the {largest} contributes more'
    return f"""<div class="sk-maps" role="group" style="--seen: url({seen})" aria-label="{title}">
<p class="sk-caption">{title}
<small>Both outputs, times their weights, compared by their norm over the channels at every position; the percentage is
the share of positions where the {largest} is ahead. See docs/attention.md.</small></p>
<p class="sk-scale" aria-hidden="true">{smallest}<i></i>{largest}</p>
<div class="sk-grid" style="max-width: {1.2 * _SIDE * len(analysis.units):.0f}px">{figures}</div></div>"""


def _figure(unit: UnitDifference, largest: str) -> str:
    share = f'{float((unit.map > 0).float().mean()):.0%}'
    name = escape(unit.name)
    alternative = f'{name}: the {largest} contributes more at {share} of the positions'
    return f"""<figure><div role="img" aria-label="{alternative}"
style="background-image: url({data_uri(overlay(unit))}), var(--seen)"></div>
<figcaption>{name} <b>{share}</b></figcaption></figure>"""


def overlay(unit: UnitDifference) -> Image.Image:
    """The map of a unit as RGBA: orange for the largest kernel, blue for the smallest, transparent for a draw."""
    height, width = (min(side, _SIDE) for side in unit.map.shape)
    difference = adaptive_avg_pool2d(unit.map[None].float(), (height, width))[0].numpy()
    shade = np.round((difference / _FULL).clip(-1, 1) * _STEPS) / _STEPS  # [H, W]
    colour = np.where(shade[..., None] > 0, _LARGEST, _SMALLEST)
    rgba = np.dstack([colour, abs(shade) * _OPACITY * 255]).astype(np.uint8)
    return _resized(Image.fromarray(rgba))


def _resized(image: Image.Image) -> Image.Image:
    """The image in the size of a map; a smaller one keeps its pixels as squares."""
    resampling = Image.Resampling.NEAREST if max(image.size) <= _SIDE else Image.Resampling.BOX
    return image.resize((_SIDE, _SIDE), resampling)
