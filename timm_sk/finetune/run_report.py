"""What a person sees of a run: a bar or lines while it trains, metrics.csv, curves.png, confusion.png, TensorBoard."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from .. import console
from ..atomic_io import whole_file
from .curves import draw_confusion, draw_curves, require_matplotlib

__all__ = ['METRICS', 'Report', 'draw_confusion', 'draw_curves']

METRICS = 'metrics.csv'
EVENTS = 'tensorboard'
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal for a bar

# How the values of a row are called and written in a line; accuracies are in percent.
_SHOWN = {
    'loss': 'loss {:.4g}',
    'train_loss': 'loss {:.4g}',
    'top1': 'top-1 {:.2f} %',
    'train_top1': 'top-1 {:.2f} %',
    'val_loss': 'validation loss {:.4g}',
    'val_top1': 'top-1 {:.2f} %',
    'val_top5': 'top-5 {:.2f} %',
    'lr': 'lr {:.3g}',
    'images_per_s': '{:,.0f} images/s',
    'wait_share': 'waiting {:.1%}',
    'seconds': '{:,.0f} s',
}


class Report:
    """Tells of a run as it goes.

    Args:
        folder: The run's folder; made if it is missing.
        active: Whether this process is the one that tells; the others' reports do nothing.
        tensorboard: Whether to write TensorBoard's events too, into a folder of that name.

    Raises:
        ValueError: If matplotlib, which draws the images at a run's end, or tensorboard is needed and missing.
    """

    def __init__(self, folder: Path, *, active: bool, tensorboard: bool = False) -> None:
        self.folder, self.active = folder, active
        self._epochs = 0
        self._events: Any = None
        if not active:
            return
        require_matplotlib()
        folder.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            if find_spec('tensorboard') is None:
                raise ValueError(
                    "TensorBoard's events are written by tensorboard, which is not installed: "
                    'pip install "timm_sk[tensorboard]".'
                )
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / EVENTS))

    @contextmanager
    def epoch(
        self, epoch: int, epochs: int, steps: int, first: int = 0
    ) -> Iterator[Callable[[dict[str, float]], None]]:
        """Show an epoch; gives what is to be called after each step.

        Args:
            epoch: From 0.
            epochs: How many there are.
            steps: Steps in an epoch.
            first: Steps of it that were taken before.

        Returns:
            A function that takes what is known after a step: `loss`, `top1` in percent, `images_per_s`.
        """
        self._epochs = epochs
        if not self.active:
            yield lambda values: None
        elif console.err.is_terminal:
            columns = MofNCompleteColumn(), TextColumn('{task.fields[values]}', markup=False), TimeRemainingColumn()
            with console.progress_bar(f'epoch {epoch + 1}/{epochs}', steps, *columns, completed=first) as update:
                yield lambda values: update(1, values=_line(values))
        else:
            yield _Lines(f'epoch {epoch + 1}/{epochs}', steps, first, self.say)

    def finish_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write the run's metrics anew, and tell of the last epoch.

        Args:
            history: A row of numbers by name for each epoch so far.
        """
        if not self.active or not history:
            return
        with whole_file(self.folder / METRICS) as file:
            file.write(_as_csv(history).encode())
        row = history[-1]
        of = f'/{self._epochs}' if self._epochs else ''
        self.say(f'epoch {len(history)}{of}: {_line(row)}')
        if self._events is not None:
            for name, value in row.items():
                if name != 'epoch':
                    self._events.add_scalar(name.replace('_', '/', 1), value, len(history))
            self._events.flush()

    def say(self, text: str) -> None:
        """Print one line to standard error."""
        if self.active:
            console.log(' '.join(text.split()))

    def close(self) -> None:
        """Finish what is still open; may be called again."""
        if self._events is not None:
            self._events.close()
            self._events = None


class _Lines:
    """A line of an epoch's state every so often."""

    def __init__(self, title: str, steps: int, first: int, say: Callable[[str], None]) -> None:
        self.title, self.steps, self.first, self.say = title, steps, first, say
        self.done = first
        self.began = self.told = time.monotonic()

    def __call__(self, values: dict[str, float]) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.told < SECONDS_BETWEEN_LINES or self.done >= self.steps:
            return
        self.told = now
        left = (now - self.began) / (self.done - self.first) * (self.steps - self.done)
        minutes, seconds = divmod(round(left), 60)
        self.say(f'{self.title}, step {self.done}/{self.steps}: {_line(values)}, {minutes}:{seconds:02} left')


def _line(values: Mapping[str, float]) -> str:
    return ', '.join(text.format(values[name]) for name, text in _SHOWN.items() if values.get(name) is not None)


def _as_csv(history: Sequence[Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in history)
    return text.getvalue()


def _cell(value: float | None) -> str:
    return '' if value is None else f'{value:.6g}' if isinstance(value, float) else str(value)
