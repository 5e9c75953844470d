"""The layout: three tabs, and which event asks for what."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from . import checkpoint_table, examples
from .analysis import LEAST_SCALE
from .handlers import respond
from .models import Models, offered
from .widgets import picture_input, scale_input

DEFAULT_MODEL = 'sknet_atto.shapes'
DEFAULT_OTHER = 'sknet_atto.digits'

TITLE = 'Selective kernels'
INTRODUCTION = f"""# {TITLE}

A selective-kernel unit weighs kernels of several sizes for each picture. Enlarge the object and see what the units do.
"""


def build_app(model: str = DEFAULT_MODEL) -> gr.Blocks:
    """The page, with a model that is chosen at first; an answer to an example is there before the first event.

    Args:
        model: Architecture, `arch.tag` or what else `timm_sk.factory.ready_model` takes.

    Raises:
        ValueError: If there is no such model, or it cannot be loaded.
    """
    models = Models()
    models.get(model)
    names = offered(model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs(elem_classes='sk-tabs'):
            with gr.Tab('One model', elem_id='one-model'):
                _one_model(models, names)
            with gr.Tab('Two models', elem_id='two-models'):
                _two_models(models, names)
            with gr.Tab('Checkpoints', elem_id='checkpoints'):
                _checkpoints()
    return app


def _one_model(models: Models, names: list[str]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = _model_choice('Model and checkpoint', names, names[0])
            given = picture_input(names[0])
        with gr.Column(scale=3, min_width=300):
            scale = scale_input()
            shown = _html(respond(models, str(given.first), names[0], LEAST_SCALE))
    chosen.change(examples.buttons, chosen, given.examples, api_visibility='private', queue=False)
    _answer_on_change(partial(respond, models), [given.picture, chosen, scale], shown, 'analyse')


def _two_models(models: Models, names: list[str]) -> None:
    chosen, shown = [], []
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            given = picture_input(names[0])
        with gr.Column(scale=4, min_width=300):
            scale = scale_input()
            with gr.Row():
                for place, name in zip(('First', 'Second'), _pair(names), strict=True):
                    with gr.Column(min_width=300):
                        chosen.append(_model_choice(f'{place} model', names, name))
                        shown.append(_html(respond(models, str(given.first), name, LEAST_SCALE), 'sk-beside'))

    def compare(path: str | None, first: str | None, second: str | None, scale: float) -> list[str]:
        return [respond(models, path, name, scale) for name in (first, second)]

    _answer_on_change(compare, [given.picture, *chosen, scale], shown, 'compare')


def _pair(names: list[str]) -> tuple[str, str]:
    """The first model and another that ships with the package."""
    return names[0], next(name for name in names[1:] if name in (DEFAULT_MODEL, DEFAULT_OTHER))


def _model_choice(label: str, names: list[str], value: str) -> gr.Dropdown:
    return gr.Dropdown(names, value=value, label=label, info='What does not ship with the package is downloaded.')


def _html(value: str, kind: str | None = None) -> gr.HTML:
    return gr.HTML(value, js_on_load=None, apply_default_css=False, elem_classes=kind)


def _answer_on_change(answer: Callable[..., Any], inputs: list[Any], outputs: Any, api_name: str) -> None:
    """Answer when an input changes. One event for all of them, so that no older answer can arrive last."""
    gr.on(
        [component.change for component in inputs],
        answer,
        inputs,
        outputs,
        api_name=api_name,
        show_progress='minimal',
        trigger_mode='always_last',
        concurrency_id='answers',
    )


def _checkpoints() -> None:
    rows = checkpoint_table.rows()
    _html(checkpoint_table.charts(rows))
    gr.Dataframe(
        checkpoint_table.table(rows),
        headers=list(checkpoint_table.COLUMNS),
        datatype=list(checkpoint_table.COLUMN_TYPES),
        label='Checkpoints',
        interactive=False,
        show_search='filter',
        max_height=600,
        column_widths=list(checkpoint_table.COLUMN_WIDTHS),
        elem_classes='sk-table',
    )


def beside(name: str) -> str:
    """The text of a file beside this one, the page's style sheet or script."""
    return Path(__file__).with_name(name).read_text(encoding='utf-8')


def theme() -> gr.themes.Base:
    """Gradio's, with the fonts of the visitor's system, and grey text that is dark enough to read."""
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
