"""The parts of a tab that take a picture, by upload or example, and the scale of its object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from . import examples
from .analysis import GREATEST_SCALE, LEAST_SCALE


@dataclass(frozen=True)
class PictureInput:
    """Its components.

    Attributes:
        picture: The picture's file.
        examples: Buttons.
        first: The file that is there at first.
    """

    picture: gr.Image
    examples: gr.HTML
    first: Path


def picture_input(checkpoint: str) -> PictureInput:
    """Lay it out where the caller is, with the examples of a checkpoint."""
    first = examples.first(checkpoint)
    picture = gr.Image(
        value=str(first),
        type='filepath',
        image_mode=None,
        sources=['upload', 'clipboard'],
        label='Picture',
        alt_text='The picture that the model is asked about',
        height=260,
        buttons=[],
        elem_classes='sk-picture',
    )
    picture.preprocess = _path  # gradio's own would decode the file before we have looked at its size
    moves_to_cache = picture.async_move_resource_to_block_cache

    async def moves_uploads_to_cache(path: str | Path | None) -> str | None:
        """Gradio's own would fetch an address that a request names, however much is there."""
        if path is not None and '://' in str(path):
            raise gr.Error('A picture must be uploaded; an address is not fetched.')
        return await moves_to_cache(path)

    picture.async_move_resource_to_block_cache = moves_uploads_to_cache
    buttons = gr.HTML(examples.buttons(checkpoint), js_on_load=examples.ON_LOAD, apply_default_css=False)
    buttons.click(_example, None, picture, api_visibility='private', queue=False)
    return PictureInput(picture, buttons, first)


def scale_input() -> gr.Slider:
    """The slider, to be laid out close above what follows it, which on a phone must be seen at the same time."""
    return gr.Slider(
        LEAST_SCALE,
        GREATEST_SCALE,
        value=LEAST_SCALE,
        step=0.05,
        label='Scale of the object',
        info='How many times the middle of the picture is enlarged.',
    )


def _path(payload: Any) -> str | None:
    """Where the server has put an upload; an address that holds the picture itself is not taken."""
    return payload.path if payload is not None else None


def _example(event: gr.EventData) -> str:
    return str(examples.example(event.checkpoint, event.example))
