"""`timm-sk finetune`: its options are the fields of `finetune.Config`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from .. import console
from ..finetune.config import Config, read_settings
from ..finetune.run_report import format_metrics
from .chosen_images import NO_MODEL
from .dataclass_options import with_options

if TYPE_CHECKING:
    from ..finetune.loop import OnStep
    from ..finetune.train_state import TrainState

SECONDS_BETWEEN_LINES = 30.0
_EXIT_STOPPED = 130  # as of a shell after Ctrl-C


@with_options(Config)
def finetune_model(
    context: typer.Context,
    config: Annotated[str | None, typer.Option('--config', '-c', help='YAML file of settings, or a recipe.')] = None,
    **settings: Any,
) -> None:
    """Fine-tune a model on images, and export a folder that timm, transformers and the Hub can load.

    Several processes: torchrun --nproc-per-node=N -m timm_sk finetune … Settings come from the options, then from
    --config, then from the defaults shown here.
    """
    from ..finetune import Stopped, extract, finetune

    with console.one_line_errors():
        given = {name: value for name, value in settings.items() if _is_given(context, name)}
        chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        resolved = Config(**(read_settings(config) if config else {}) | chosen)
        if not resolved.model:
            raise ValueError(NO_MODEL)
        is_main = os.environ.get('RANK', '0') == '0'
        try:
            if resolved.features:
                written = extract(resolved)
            else:
                with step_report(is_active=is_main) as on_step:
                    written = finetune(resolved, log=_log, on_step=on_step).export
        except Stopped as stopped:
            if is_main:
                _log(f'{stopped} Resume with the same command and --resume auto.')
            raise typer.Exit(_EXIT_STOPPED) from stopped
        if is_main:
            print(written)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == 'COMMANDLINE'


def _log(line: str) -> None:
    console.log(' '.join(line.split()))


@contextmanager
def step_report(*, is_active: bool = True) -> 'Iterator[OnStep]':
    """Report training steps: by a progress bar on a terminal, else by a line every 30 seconds."""
    columns = (MofNCompleteColumn(), TextColumn('{task.fields[values]}', markup=False), TimeRemainingColumn())
    with console.progress_bar('', None, *columns, is_active=is_active) as update:

        def update_bar(state: 'TrainState', step: int, steps: int, metrics: dict[str, float]) -> None:
            update(description=_title(state), completed=step, total=steps, values=format_metrics(metrics))

        yield update_bar if console.err.is_terminal else _StepLines()


class _StepLines:
    def __init__(self) -> None:
        self.epoch = -1
        self.start = self.logged = 0.0
        self.first = 0

    def __call__(self, state: 'TrainState', step: int, steps: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if state.progress.epoch != self.epoch:
            self.epoch, self.first, self.start, self.logged = state.progress.epoch, step, now, now
        elif now - self.logged >= SECONDS_BETWEEN_LINES and step < steps:
            self.logged = now
            left = (now - self.start) / (step - self.first) * (steps - step)
            minutes, seconds = divmod(round(left), 60)
            _log(f'{_title(state)}, step {step}/{steps}: {format_metrics(metrics)}, {minutes}:{seconds:02} left')


def _title(state: 'TrainState') -> str:
    return f'epoch {state.progress.epoch + 1}/{state.epochs}'
