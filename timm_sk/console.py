"""How the command line speaks: its two consoles, and errors as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from .errors import PeerStoppedError
from .news import is_news

_SECONDS_FOR_THE_CAUSE = 2.0

out, err = Console(), Console(stderr=True)


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
