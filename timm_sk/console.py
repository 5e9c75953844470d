"""How the command line speaks: its two consoles, errors as one line, each line once in all processes."""

import datetime
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
import typer
from rich.console import Console

from .errors import PeerStoppedError

_SECONDS_FOR_THE_CAUSE = 2.0
out, err = Console(), Console(stderr=True)
_PATIENCE = datetime.timedelta(seconds=10)
_ANYTHING = 'anything'


def say_error(message: str) -> None:
    """Print one line to standard error; what could steer the terminal is left out."""
    line = ''.join(character for character in ' '.join(message.split()) if character.isprintable())
    err.print(f'timm-sk: {line}', soft_wrap=True, markup=False, highlight=False)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 1; of several processes the first one with it says it."""
    try:
        yield
    except (ValueError, OSError) as error:
        is_consequence = isinstance(error, PeerStoppedError)
        if is_news(str(error), unless_within=_SECONDS_FOR_THE_CAUSE if is_consequence else 0):
            say_error(str(error))
        raise typer.Exit(1) from error


def is_news(line: str, *, unless_within: float = 0.0) -> bool:
    """Whether no other process has said a line before; from now on it counts as said.

    Processes that torchrun has not started know nothing of each other: to each of them all is news.

    Args:
        line: The line.
        unless_within: Seconds to wait for a line of another process, which makes this one no news.
    """
    store = _store()
    if store is None:
        return True
    if unless_within:
        try:
            store.wait([_ANYTHING], datetime.timedelta(seconds=unless_within))
        except dist.DistStoreError:
            pass
        else:
            return False
    said_before = store.add(hashlib.sha256(line.encode()).hexdigest(), 1) > 1
    store.add(_ANYTHING, 1)
    return not said_before


def _store() -> dist.Store | None:
    """The store of torchrun's agent, which outlives the processes; None if there is no agent, or it is gone."""
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return None
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=_PATIENCE)
    except dist.DistError:
        return None
    return dist.PrefixStore(f'timm_sk/said/{os.environ.get("TORCHELASTIC_RUN_ID", "")}', store)
