"""Find rows of the table of checkpoints by name, architecture or pattern."""

from collections.abc import Sequence
from fnmatch import fnmatch

from ..checkpoints import CHECKPOINTS, Checkpoint, of_arch
from ..errors import NoWeightsError, UnknownModelError, nearest


def find_rows(patterns: Sequence[str]) -> list[Checkpoint]:
    """The rows with weights of names, architectures (their default checkpoints) and patterns such as `resnest50d.*`.

    Returns:
        Each row once, in the table's order.

    Raises:
        UnknownModelError: If one of them matches none.
        NoWeightsError: If none that one of them matches has weights.
    """
    found: set[str] = set()
    for pattern in patterns:
        rows = of_arch(pattern)[:1] or [row for row in CHECKPOINTS.values() if _matches(pattern, row)]
        if not rows:
            known = [*CHECKPOINTS, *(row.arch for row in CHECKPOINTS.values())]
            raise UnknownModelError(
                f'Unknown checkpoint "{pattern}".{nearest(pattern, known)} `timm-sk weights list` shows all.'
            )
        if not any(row.sources for row in rows):
            raise NoWeightsError(f'{rows[0].name} is an untrained model: it has no weights.')
        found.update(row.name for row in rows if row.sources)
    return [row for row in CHECKPOINTS.values() if row.name in found]


def find_row(name: str) -> Checkpoint:
    """The row of an `arch.tag`, or of an architecture's default checkpoint, as `find_rows`.

    Raises:
        UnknownModelError: If there is none, or there are several.
        NoWeightsError: If the row has no weights.
    """
    rows = find_rows([name])
    if len(rows) > 1:
        raise UnknownModelError(f'"{name}" matches {len(rows)} checkpoints: name one of them.')
    return rows[0]


def search_rows(pattern: str = '') -> list[Checkpoint]:
    """The rows whose `arch.tag` contains a text, or whose name or architecture matches it if it has wildcards."""
    if not set('*?[') & set(pattern):
        pattern = f'*{pattern}*'
    return [row for row in CHECKPOINTS.values() if _matches(pattern, row)]


def _matches(pattern: str, row: Checkpoint) -> bool:
    return fnmatch(row.name, pattern) or fnmatch(row.arch, pattern)
