"""Rows of the table by name, architecture or pattern."""

from collections.abc import Sequence
from fnmatch import fnmatch

from ..errors import NoWeightsError, UnknownModelError
from . import CHECKPOINTS, Checkpoint


def find_rows(patterns: Sequence[str]) -> list[Checkpoint]:
    """The rows of the table that names, architectures or patterns mean, in the table's order.

    Raises:
        UnknownModelError: If one of them means none.
    """
    for pattern in patterns:
        if not any(_means(pattern, row) for row in CHECKPOINTS.values()):
            raise UnknownModelError(f'The table has no checkpoint "{pattern}"; `timm-sk weights list` shows all.')
    return [row for row in CHECKPOINTS.values() if any(_means(pattern, row) for pattern in patterns)]


def _means(pattern: str, row: Checkpoint) -> bool:
    return fnmatch(row.name, pattern) or row.arch == pattern


def find_row(name: str) -> Checkpoint:
    """A row by `arch.tag`, or by its architecture if that has one checkpoint with weights.

    Raises:
        UnknownModelError: If it means none, or several.
        NoWeightsError: If the row has no weights.
    """
    rows = [row for row in find_rows([name]) if row.sources] or find_rows([name])
    if len(rows) > 1:
        raise UnknownModelError(f'"{name}" means {", ".join(row.name for row in rows)}: name one.')
    if not rows[0].sources:
        raise NoWeightsError(f'{rows[0].name} names an untrained model: it has no weights.')
    return rows[0]


def matching(pattern: str = '') -> list[Checkpoint]:
    """The rows of the table whose `arch.tag` holds a text, or matches it if it has wildcards."""
    return [row for row in CHECKPOINTS.values() if _matches(row.name, pattern)]


def _matches(name: str, pattern: str) -> bool:
    if set('*?[') & set(pattern):
        return fnmatch(name, pattern) or fnmatch(name.partition('.')[0], pattern)
    return pattern in name
