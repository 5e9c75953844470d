"""Find rows of the table of checkpoints by name, architecture or pattern."""

from collections.abc import Sequence
from fnmatch import fnmatch

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..errors import NoWeightsError, UnknownModelError


def find_rows(patterns: Sequence[str]) -> list[Checkpoint]:
    """The rows that match any name, architecture or pattern, in the table's order.

    Raises:
        UnknownModelError: If a pattern matches none.
    """
    for pattern in patterns:
        if not any(_matches(pattern, row) for row in CHECKPOINTS.values()):
            raise UnknownModelError(f'Unknown checkpoint "{pattern}": `timm-sk weights list` shows all.')
    return [row for row in CHECKPOINTS.values() if any(_matches(pattern, row) for pattern in patterns)]


def find_row(name: str) -> Checkpoint:
    """The row of an `arch.tag`, or of an architecture that has one checkpoint with weights.

    Raises:
        UnknownModelError: If there is none, or there are several.
        NoWeightsError: If the row has no weights.
    """
    rows = [row for row in find_rows([name]) if row.sources] or find_rows([name])
    if len(rows) > 1:
        raise UnknownModelError(f'"{name}" is ambiguous: choose one of {", ".join(row.name for row in rows)}.')
    if not rows[0].sources:
        raise NoWeightsError(f'{rows[0].name} is an untrained model: it has no weights.')
    return rows[0]


def search_rows(pattern: str = '') -> list[Checkpoint]:
    """The rows whose `arch.tag` contains a text, or whose name or architecture matches it if it has wildcards."""
    if not set('*?[') & set(pattern):
        pattern = f'*{pattern}*'
    return [row for row in CHECKPOINTS.values() if _matches(pattern, row)]


def _matches(pattern: str, row: Checkpoint) -> bool:
    return fnmatch(row.name, pattern) or fnmatch(row.arch, pattern)
