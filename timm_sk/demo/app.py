"""The layout: three tabs, and which event asks for what."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from . import checkpoint_table, costs, examples
from .analysis import LEAST_SCALE
from .answers import respond
from .models import Models, offered
from .picture_input import PictureInput, picture_input

DEFAULT_MODEL = 'sknet_atto.shapes'
DEFAULT_OTHER = 'sknet_atto.digits'

TITLE = 'Selective kernels'
INTRODUCTION = f"""# {TITLE}

A selective-kernel unit weighs kernels of several sizes for each picture. Enlarge the object and see what the units do.
"""


def build_app(model: str = DEFAULT_MODEL) -> gr.Blocks:
    """The page, with a model that is chosen at first; an answer to an example is there before the first event.

    Args:
        model: Architecture, `arch.tag` or what else `timm_sk.hub.ready_model` takes.

    Raises:
        ValueError: If there is no such model, or it cannot be loaded.
    """
    models = Models()
    models.get(model)
    names = offered(model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs():
            with gr.Tab('One model'):
                _one_model(models, names)
            with gr.Tab('Two models'):
                _two_models(models, names)
            with gr.Tab('Checkpoints'):
                _checkpoints()
    return app


def _one_model(models: Models, names: list[str]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = _model_choice('Model and checkpoint', names, names[0])
            given = picture_input(names[0])
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(respond(models, str(given.first), names[0], LEAST_SCALE), js_on_load=None)
    chosen.change(examples.buttons, chosen, given.examples, api_visibility='private', queue=False)
    _answer_on_change(partial(respond, models), [given.picture, chosen, given.scale], shown, 'analyse', given, chosen)


def _two_models(models: Models, names: list[str]) -> None:
    second = DEFAULT_OTHER if names[0] != DEFAULT_OTHER else DEFAULT_MODEL
    first_names = (names[0], second)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            given = picture_input(names[0])
        with gr.Column(scale=4, min_width=300), gr.Row():
            choices, shown = [], []
            for place, name in zip(('First', 'Second'), first_names, strict=True):
                with gr.Column(min_width=300):
                    choices.append(_model_choice(f'{place} model', names, name))
                    value = respond(models, str(given.first), name, LEAST_SCALE)
                    shown.append(gr.HTML(value, js_on_load=None))

    def compare(path: str | None, first: str | None, second: str | None, scale: float) -> list[str]:
        return [respond(models, path, name, scale) for name in (first, second)]

    _answer_on_change(compare, [given.picture, *choices, given.scale], shown, 'compare', given, *choices)


def _model_choice(label: str, names: list[str], value: str) -> gr.Dropdown:
    return gr.Dropdown(names, value=value, label=label, info='What does not ship with the package is downloaded.')


def _answer_on_change(
    answer: Any, inputs: list[Any], outputs: Any, api_name: str, given: PictureInput, *choices: gr.Dropdown
) -> None:
    """Answer when the picture or a model changes, and while the scale moves: then without a sign of waiting."""
    gr.on([given.picture.change, *(choice.change for choice in choices)], answer, inputs, outputs, api_name=api_name)
    given.scale.change(
        answer,
        inputs,
        outputs,
        api_visibility='private',
        show_progress='hidden',
        trigger_mode='always_last',
    )


def _checkpoints() -> None:
    rows = costs.entries()
    gr.HTML(checkpoint_table.charts(rows), js_on_load=None)
    gr.Dataframe(
        checkpoint_table.table(rows),
        headers=list(checkpoint_table.COLUMNS),
        datatype=list(checkpoint_table.COLUMN_TYPES),
        label='Checkpoints',
        interactive=False,
        show_search='filter',
        max_height=600,
    )


def style() -> str:
    """The page's style sheet."""
    return Path(__file__).with_name('style.css').read_text(encoding='utf-8')
