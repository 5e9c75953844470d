"""The example images as a row of buttons."""

from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from ..errors import TimmSkError
from ..inference.prediction import example_images
from .html import data_uri

DEFAULT_EXAMPLES = 'sknet_atto.shapes'

# Sends the pressed button to the server; the browser turns Enter and Space into clicks.
ON_LOAD = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) trigger('click', {checkpoint: button.dataset.checkpoint, example: button.dataset.example});
});
"""


@lru_cache(maxsize=16)
def buttons(checkpoint: str) -> str:
    """The buttons of a checkpoint's examples, or of `DEFAULT_EXAMPLES` if it has none."""
    owner = _owner(checkpoint)
    html = ''.join(_button(owner, path) for path in _paths(owner))
    title = f'Examples of {escape(owner)}'
    return f'<div class="sk-examples" role="group" aria-label="{title}"><p>{title}</p>{html}</div>'


def _button(owner: str, path: Path) -> str:
    name = escape(path.stem)
    with Image.open(path) as image:
        html = f'<img src="{data_uri(image)}" alt="">{name}'
    return f'<button type="button" data-checkpoint="{escape(owner)}" data-example="{name}">{html}</button>'


def example(checkpoint: str, name: str) -> Path:
    """The file of an example; raises ValueError if there is none of this name."""
    for path in _paths(checkpoint):
        if path.stem == name:
            return path
    raise ValueError(f'{checkpoint} has no example "{name}".')


def first(checkpoint: str) -> Path:
    """The image that a page with this checkpoint shows first."""
    paths = _paths(_owner(checkpoint))
    return paths[len(paths) // 2]


def _owner(checkpoint: str) -> str:
    return checkpoint if _paths(checkpoint) else DEFAULT_EXAMPLES


def _paths(checkpoint: str) -> list[Path]:
    try:
        return example_images(checkpoint)
    except TimmSkError:  # a name with a source, or one that timm does not know
        return []
