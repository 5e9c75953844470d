"""The layout of the page: three tabs, their inputs, and the events that update the answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import UnreadableImageError
from . import charts, checkpoint_table, examples
from .analysis import MAX_SCALE, MIN_SCALE
from .choices import choices, offered
from .handlers import respond
from .html import PAPER, link, message
from .model_cache import ModelCache
from .uploads import MAX_DECODED, read_upload
from .visitors import BusyError, Turns, visitor_of

_MAX_THREADS = 32  # most of them wait for a model to be loaded: `analysis` limits what computes
_MAX_ANSWERS = 8  # of a visitor at a time

DEFAULT_MODEL = 'sknet_atto.shapes'
DEFAULT_OTHER = 'sknet_atto.digits'

TITLE = 'Selective kernels'
DESCRIPTION = 'See how a selective-kernel network weighs its small and large kernels as the object in an image grows.'
INTRODUCTION = f"""# {TITLE}

A selective-kernel unit runs kernels of several sizes, and weighs them anew for each image
({link(PAPER, 'Selective Kernel Networks')}, CVPR 2019). Enlarge the object to see how the weights change.
See docs/demo.md.
"""


def build_app(model: str = DEFAULT_MODEL) -> gr.Blocks:
    """Build the page; it first shows the answer of the model, a name that `timm_sk.load` takes, to an example.

    Raises:
        ValueError: If there is no such model, or it cannot be loaded.
    """
    models, answers = ModelCache(), Answers()
    models.get(model)
    names = offered(model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs(elem_classes='sk-tabs'):
            with gr.Tab('One model', elem_id='one-model'):
                _one_model(models, names, answers)
            with gr.Tab('Two models', elem_id='two-models'):
                _two_models(models, names, answers)
            with gr.Tab('Checkpoints', elem_id='checkpoints'):
                rows = checkpoint_table.rows()
                _html(charts.charts(rows))
                _html(checkpoint_table.table(rows), js_on_load=checkpoint_table.ON_LOAD)
    return app


def _one_model(models: ModelCache, names: list[str], answers: 'Answers') -> None:
    first = str(examples.first(names[0]))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = _model_choice('Model and checkpoint', names, names[0])
            image, buttons = _image_input(names[0])
        with gr.Column(scale=3, min_width=300):
            scale = _scale_input()
            shown = _html(respond(models, first, names[0], MIN_SCALE))
    chosen.change(examples.buttons, chosen, buttons, api_visibility='private', queue=False)
    _answer_on_change(answers, partial(respond, models), [image, chosen, scale], [shown], 'analyse')


def _two_models(models: ModelCache, names: list[str], answers: 'Answers') -> None:
    other = next(name for name in names[1:] if name in (DEFAULT_MODEL, DEFAULT_OTHER))
    first = str(examples.first(names[0]))
    chosen, shown = [], []
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image, _ = _image_input(names[0])
        with gr.Column(scale=4, min_width=300):
            scale = _scale_input()
            with gr.Row():
                for place, name in (('First', names[0]), ('Second', other)):
                    with gr.Column(min_width=300):
                        chosen.append(_model_choice(f'{place} model', names, name))
                        shown.append(_html(respond(models, first, name, MIN_SCALE), 'sk-beside'))

    def compare(path: str | None, first: str | None, second: str | None, scale: float) -> list[str]:
        return [respond(models, path, name, scale) for name in (first, second)]

    _answer_on_change(answers, compare, [image, *chosen, scale], shown, 'compare')


def _model_choice(label: str, names: list[str], value: str) -> gr.Dropdown:
    return gr.Dropdown(
        choices(names),
        value=value,
        label=label,
        info='Weights are downloaded when needed. Models that cannot be loaded are marked.',
    )


def _image_input(checkpoint: str) -> tuple[gr.Image, gr.HTML]:
    """An image and the buttons with the examples of a checkpoint."""
    image = gr.Image(
        value=str(examples.first(checkpoint)),
        type='filepath',
        image_mode=None,
        sources=['upload', 'clipboard'],
        label='Image',
        alt_text='Image to classify',
        height=260,
        buttons=[],
        elem_classes='sk-image',
    )
    # gradio's own decodes the file before its size is checked; a data URI with the image itself has no path
    image.preprocess = lambda upload: upload and upload.path
    move_to_cache = image.async_move_resource_to_block_cache

    async def move_upload_to_cache(path: str | Path | None) -> str | None:
        """Refuse an address in a request, which gradio's own would download whatever its size."""
        if path is not None and '://' in str(path):
            raise gr.Error('An image must be uploaded; addresses are not downloaded.')
        return await move_to_cache(path)

    image.async_move_resource_to_block_cache = move_upload_to_cache
    buttons = _html(examples.buttons(checkpoint), js_on_load=examples.ON_LOAD)
    buttons.click(_example, None, image, api_visibility='private', queue=False)
    return image, buttons


def _example(event: gr.EventData) -> str:
    return str(examples.example(event.checkpoint, event.example))


def _scale_input() -> gr.Slider:
    """The slider; its place is close above the answer, so that a phone shows both."""
    label, info = 'Scale of the object', 'Magnification of the middle of the image.'
    return gr.Slider(MIN_SCALE, MAX_SCALE, value=MIN_SCALE, step=0.05, label=label, info=info)


def _html(value: str, kind: str | None = None, js_on_load: str | None = None) -> gr.HTML:
    return gr.HTML(value, js_on_load=js_on_load, apply_default_css=False, elem_classes=kind)


class Answers:
    """Answers to visitors in threads: each visitor has a few at a time, and one image that is decoded."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix='timm_sk_demo')
        self._decoders = ThreadPoolExecutor(MAX_DECODED, thread_name_prefix='timm_sk_decode')
        self._decoding, self._answering = Turns(1), Turns(_MAX_ANSWERS)

    async def ask(self, visitor: str, answer: Callable[..., Any], path: str | None, *values: Any) -> Any:
        """An answer, or an error message."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with self._answering.turn(visitor):
                if path:  # which the answer then finds in the cache
                    async with self._decoding.turn(visitor):
                        await run(self._decoders, read_upload, Path(path))
                return await run(self._threads, answer, path, *values)
        except UnreadableImageError as error:
            return message(str(error))
        except BusyError:
            return message('Too many requests at a time from your address: try again later.')


def _answer_on_change(
    answers: Answers, answer: Callable[..., Any], inputs: list[Any], outputs: list[Any], api_name: str
) -> None:
    """Answer when an input changes. All inputs share one event, so that no older answer can arrive last."""

    async def answer_in_turn(request: gr.Request, *values: Any) -> Any:
        answered = await answers.ask(visitor_of(request.client), answer, *values)
        return [answered] * len(outputs) if isinstance(answered, str) and len(outputs) > 1 else answered

    gr.on(
        [component.change for component in inputs],
        answer_in_turn,
        inputs,
        outputs,
        api_name=api_name,
        show_progress='minimal',
        trigger_mode='always_last',
    )


def theme() -> gr.themes.Base:
    """Gradio's default theme with system fonts, and grey text dark enough to read."""
    return gr.themes.Default(
        primary_hue='blue', font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']
    ).set(
        body_text_color_subdued='*neutral_600',
        body_text_color_subdued_dark='*neutral_400',
        block_info_text_color='*neutral_600',
        block_info_text_color_dark='*neutral_400',
        block_label_text_color='*neutral_700',
        block_title_text_color='*neutral_700',
    )
