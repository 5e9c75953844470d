"""CSV files with cells that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterable
from contextlib import suppress
from numbers import Number
from pathlib import Path
from typing import Any

from .atomic_io import atomic_write

_FORMULAS = ('=', '+', '-', '@', '\t', '\n')  # what begins a formula in a spreadsheet


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV; an apostrophe is put before a text that a spreadsheet would execute."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows atomically; the first one has the names of the columns."""
    with atomic_write(path) as file:
        file.write(csv_text(rows).encode())


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, Number):
        return value
    text = str(value).replace('\r', ' ')  # which would end the line unquoted
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.startswith(_FORMULAS) else text
