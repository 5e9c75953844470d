"""Every architecture and checkpoint with its size, cost and accuracy, as rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoints import Checkpoint
from ..pretrained.lookup import search_rows
from .costs import cost


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One checkpoint.

    Attributes:
        arch: Name of the architecture.
        tag: Tag of the checkpoint.
        params: Number of parameters, with the checkpoint's classifier.
        macs: Multiply-adds of all convolutions and matrix products for one image of `input_size`.
        input_size: (channels, height, width).
        weights: First source of the weights: 'bundled', 'hub', 'url' (the authors' release) or 'none'.
        top1: Accuracy in percent on the checkpoint's own data set, if known.
    """

    arch: str
    tag: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    weights: str
    top1: float | None


def catalog(pattern: str = '') -> list[CatalogEntry]:
    """The entries of the checkpoints that `search_rows` finds."""
    return [entry(row) for row in search_rows(pattern)]


def entry(row: Checkpoint) -> CatalogEntry:
    """The entry of one checkpoint."""
    params, macs = cost(row)
    return CatalogEntry(
        arch=row.arch,
        tag=row.tag,
        params=params,
        macs=macs,
        input_size=row.input_size,
        weights=row.sources[0].kind if row.sources else 'none',
        top1=row.top1,
    )


COLUMNS = ('name', 'tag', 'params', 'GMACs', 'input', 'weights', 'top-1')


def cells(entry: CatalogEntry) -> tuple[str, ...]:
    """An entry as text, in the order of `COLUMNS`: millions of parameters, billions of multiply-adds."""
    return (
        entry.arch,
        entry.tag,
        f'{entry.params / 1e6:.2f} M',
        f'{entry.macs / 1e9:.3f}',
        'x'.join(map(str, entry.input_size)),
        entry.weights,
        '' if entry.top1 is None else f'{entry.top1:.2f}',
    )


def markdown(entries: Sequence[CatalogEntry]) -> str:
    """The README's Markdown table: a row per architecture, with the names of its checkpoints.

    Size, cost and accuracy are those of the first checkpoint.
    """
    lines: list[tuple[str, ...]] = [('name', 'params', 'GMACs', 'input', 'checkpoints', 'top-1')]
    lines.append(('---',) * len(lines[0]))
    for arch in dict.fromkeys(entry.arch for entry in entries):
        rows = [entry for entry in entries if entry.arch == arch]
        _, _, params, macs, input_size, _, top1 = cells(rows[0])
        tags = ', '.join(entry.tag for entry in rows if entry.weights != 'none')
        lines.append((arch, params, macs, input_size, tags, top1))
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
