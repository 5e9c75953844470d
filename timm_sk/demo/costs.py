"""What every checkpoint costs: counted beforehand, for it takes half a minute, into costs.csv beside this file.

`python -m timm_sk.demo.costs` counts again, once there is a new architecture.
"""

import csv
from functools import cache
from pathlib import Path

from ..catalog import CatalogEntry, catalog, measure
from ..checkpoints import CHECKPOINTS, Checkpoint

FILE = Path(__file__).with_name('costs.csv')
COLUMNS = ('arch', 'num_classes', 'input_size', 'params', 'macs')

_Shape = tuple[str, ...]


def counted() -> dict[_Shape, tuple[int, int]]:
    """Parameters and multiply-adds in the file, by architecture, number of classes and input size."""
    with FILE.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    return {tuple(row[column] for column in COLUMNS[:3]): (int(row['params']), int(row['macs'])) for row in rows}


@cache
def entries() -> tuple[tuple[Checkpoint, CatalogEntry], ...]:
    """The checkpoints that have weights, with their costs; what the file lacks is counted."""
    known = counted()
    return tuple((row, _entry(row, known)) for row in CHECKPOINTS.values() if row.sources)


def _entry(row: Checkpoint, known: dict[_Shape, tuple[int, int]]) -> CatalogEntry:
    if _shape(row) not in known:
        return measure(row)
    params, macs = known[_shape(row)]
    return CatalogEntry(
        arch=row.arch,
        tag=row.tag,
        params=params,
        macs=macs,
        input_size=row.input_size,
        weights=row.sources[0].kind,
        top1=row.top1,
    )


def _shape(row: Checkpoint) -> _Shape:
    return row.arch, str(row.num_classes), 'x'.join(map(str, row.input_size))


def write() -> None:
    """Count every architecture and write the file."""
    measured = {
        _shape(row): (entry.params, entry.macs) for row, entry in zip(CHECKPOINTS.values(), catalog(), strict=True)
    }
    with FILE.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(COLUMNS)
        writer.writerows([*shape, *cost] for shape, cost in measured.items())


if __name__ == '__main__':
    write()
