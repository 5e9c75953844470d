"""The metrics of a run: lines of text, metrics.csv and TensorBoard events."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..csv_files import write_csv

METRICS, EVENTS = 'metrics.csv', 'tensorboard'

# Labels and formats of metrics in a line; accuracies are in percent.
_FORMATS = {
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


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics as one line."""
    return ', '.join(text.format(metrics[name]) for name, text in _FORMATS.items() if metrics.get(name) is not None)


def write_metrics(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.csv into the folder of a run, with a row for each epoch."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    cells = [
        [f'{value:.6g}' if isinstance(value, float) else value for value in map(row.get, columns)] for row in history
    ]
    write_csv(folder / METRICS, [columns, *cells])


def open_events(folder: Path) -> Any:
    """A writer of TensorBoard events, to be closed by `with`."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / EVENTS))


def write_events(events: Any, history: Sequence[Mapping[str, float]]) -> None:
    """Write the metrics of the last epoch, grouped as in `val/top1`."""
    for name, value in history[-1].items():
        if name != 'epoch':
            events.add_scalar(name.replace('_', '/', 1), value, len(history))
    events.flush()
