"""Results as CSV: one row per measurement."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..csv_files import csv_text


@dataclass(kw_only=True)
class Measurement:
    """A row of a CSV, whose columns are the fields; None is an empty cell.

    The fields here are those of `machine.describe`, and come last.
    """

    device: str = ''
    processor: str = ''
    threads: int = 0
    torch: str = ''
    timm: str = ''
    timm_sk: str = ''
    python: str = ''
    date: str = ''

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The header."""
        last = [field.name for field in fields(Measurement)]
        return (*(field.name for field in fields(cls) if field.name not in last), *last)

    def cells(self) -> list[str]:
        """The row as text, floats with five digits."""
        values = (getattr(self, name) for name in self.columns())
        return ['' if value is None else f'{value:.5g}' if isinstance(value, float) else str(value) for value in values]


@dataclass(kw_only=True)
class Row(Measurement):
    """One variant of one case; columns are described in docs/bench.md."""

    arch: str
    branches: int | None = None
    scaling: str = ''
    side: str
    form: str
    dtype: str
    memory_format: str
    task: str
    batch: int
    size: int
    baseline: str = ''
    status: str = ''
    rounds: int | None = None
    warmup: int | None = None
    repeats: int | None = None
    min_ms: float | None = None
    median_ms: float | None = None
    max_ms: float | None = None
    images_per_s: float | None = None
    ratio_min: float | None = None
    ratio_median: float | None = None
    ratio_max: float | None = None
    of_convolutions_median: float | None = None
    peak_bytes: int | None = None
    saved_bytes_per_image: int | None = None
    saved_ratio: float | None = None
    compared: str = ''
    difference: float | None = None
    bound: float | None = None


COLUMNS = Row.columns()


def require_appendable(path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Raise ValueError if a file has other columns, or OSError if it cannot be written."""
    with path.open('a+', newline='') as file:
        file.seek(0)
        header = next(csv.reader(file), None)
    if header is not None and header != list(columns):
        raise ValueError(f'{path} is a CSV with other columns: pass a new file.')


def append(path: Path, rows: Sequence[Measurement]) -> None:
    """Add rows of one kind to a file, with a header if it is new or empty."""
    with path.open('a', newline='') as file:
        header = [] if file.tell() else [row.columns() for row in rows[:1]]
        file.write(csv_text([*header, *(row.cells() for row in rows)]))


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file, as text by column; raises ValueError if it is not a CSV of the bench."""
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f'{path} is not a CSV of timm-sk bench: expected the columns of docs/bench.md.')
        return list(reader)
