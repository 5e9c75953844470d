"""The example pictures as a row of buttons, each named after what it shows."""

from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from ..errors import TimmSkError
from ..inference.prediction import example_images
from .html import data_uri

DEFAULT_EXAMPLES = 'sknet_atto.shapes'

# Tells the page which button was pressed; the browser makes a click of Enter and Space.
ON_LOAD = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) trigger('click', {checkpoint: button.dataset.checkpoint, example: button.dataset.example});
});
"""


@lru_cache(maxsize=16)
def buttons(checkpoint: str) -> str:
    """The buttons of a checkpoint's examples, or of `DEFAULT_EXAMPLES` where it ships with none."""
    owner = _owner(checkpoint)
    drawn = (_button(owner, path) for path in _paths(owner))
    title = f'Examples of {escape(owner)}'
    return f'<div class="sk-examples" role="group" aria-label="{title}"><p>{title}</p>{"".join(drawn)}</div>'


def _button(owner: str, path: Path) -> str:
    name = escape(path.stem)
    with Image.open(path) as picture:
        drawn = f'<img src="{data_uri(picture)}" alt="">'
    return f'<button type="button" data-checkpoint="{escape(owner)}" data-example="{name}">{drawn}{name}</button>'


def example(checkpoint: str, name: str) -> Path:
    """The file of an example.

    Raises:
        ValueError: If there is none of that name.
    """
    for path in _paths(checkpoint):
        if path.stem == name:
            return path
    raise ValueError(f'{checkpoint} has no example "{name}".')


def first(checkpoint: str) -> Path:
    """The file that a page with this checkpoint begins with."""
    paths = _paths(_owner(checkpoint))
    return paths[len(paths) // 2]


def _owner(checkpoint: str) -> str:
    return checkpoint if _paths(checkpoint) else DEFAULT_EXAMPLES


def _paths(checkpoint: str) -> list[Path]:
    try:
        return example_images(checkpoint)
    except TimmSkError:  # a name with a source, or one that timm does not know
        return []
