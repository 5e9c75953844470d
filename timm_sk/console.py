"""Output of the command line: log lines, tables, progress bars, and errors as one line."""

import datetime
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .errors import PeerStoppedError, message_of

if TYPE_CHECKING:
    from torch import distributed as dist

out, err = Console(), Console(stderr=True)
_SECONDS_FOR_THE_CAUSE = 2.0
_STORE_TIMEOUT = datetime.timedelta(seconds=10)
_ANY_ERROR = 'any error'
_UNLIMITED_WIDTH = 10_000
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Omit log lines and progress bars from here on, or print them again; errors are always printed."""
    global _quiet
    _quiet = quiet


def print_line(line: str) -> None:
    """Print one line, which may have rich's markup, to standard output."""
    out.print(line, soft_wrap=True, highlight=False)


def log(line: str) -> None:
    """Print one line to standard error, unless `--quiet` is given."""
    if not _quiet:
        _print_error(line)


def log_error(message: str) -> None:
    """Print an error as one line to standard error, without characters that control a terminal."""
    _print_error('timm-sk: ' + ''.join(char for char in ' '.join(message.split()) if char.isprintable()))


def _print_error(line: str) -> None:
    err.print(line, soft_wrap=True, markup=False, highlight=False)


def number_column(name: str) -> Column:
    """A column of numbers for `print_table`."""
    return Column(name, justify='right', no_wrap=True)


def print_table(
    columns: Iterable[str | Column],
    rows: Iterable[Sequence[str]],
    *,
    title: str = '',
    caption: str = '',
    min_width: int = 0,
) -> None:
    """Print a table to standard output: on a terminal in its width, at least `min_width`, else without wrapping."""
    folded = [Column(column, overflow='fold') if isinstance(column, str) else column for column in columns]
    table = Table(*folded, title=escape(title), caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=max(out.width, min_width) if out.is_terminal else _UNLIMITED_WIDTH).print(table)


@contextmanager
def progress_bar(
    title: str, total: int | None, *columns: ProgressColumn, is_active: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a progress bar until the context ends, if standard error is a terminal and `--quiet` is not given.

    The columns after the bar are completed steps and remaining time by default; `total` is None if unknown.

    Yields:
        A function that updates the bar: by a number of steps, or to `completed=` of `total=`. `values=` is a text for
        a column of that name.
    """
    columns = columns or (MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn('{task.description}'),
        BarColumn(bar_width=None),  # takes what the other columns leave
        *columns,
        console=err,
        transient=True,
        expand=True,
        disable=_quiet or not (is_active and err.is_terminal),
    )
    with bar:
        task = bar.add_task(escape(title), total=total, values='')

        def update(steps: int | None = None, **fields: Any) -> None:
            bar.update(task, advance=steps, **fields)

        yield update


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can fix into one line and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        is_consequence = isinstance(error, PeerStoppedError)
        log_once(message_of(error), unless_within=_SECONDS_FOR_THE_CAUSE if is_consequence else 0)
        raise typer.Exit(1) from error


def log_once(message: str, *, unless_within: float = 0.0) -> None:
    """Log an error unless another process of the same torchrun has logged it.

    With `unless_within`, wait so many seconds for any error of another process, and log this one only if there is none.
    """
    store = _agent_store()
    if store is None:
        log_error(message)
        return
    from torch import distributed as dist

    if unless_within:
        try:
            store.wait([_ANY_ERROR], datetime.timedelta(seconds=unless_within))
        except dist.DistStoreError:
            pass
        else:
            return
    is_first = store.add(hashlib.sha256(message.encode()).hexdigest(), 1) == 1
    store.add(_ANY_ERROR, 1)
    if is_first:
        log_error(message)


def _agent_store() -> 'dist.Store | None':
    """The store of torchrun's agent, which outlives the processes; None if there is no agent, or it has ended."""
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return None
    from torch import distributed as dist

    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=_STORE_TIMEOUT)
    except dist.DistError:
        return None
    return dist.PrefixStore(f'timm_sk/logged/{os.environ.get("TORCHELASTIC_RUN_ID", "")}', store)
