"""The checkpoints with size, cost and accuracy, as rows of a table."""

from collections.abc import Sequence
from typing import Any

from ..checkpoints import Checkpoint
from .costs import cost

COLUMNS = ('name', 'tag', 'params', 'GMACs', 'input', 'weights', 'top-1')


def weights_from(row: Checkpoint) -> str:
    """First source of the weights: 'bundled', 'hub', 'url' (the authors' release) or 'none'."""
    return row.sources[0].kind if row.sources else 'none'


def cells(row: Checkpoint) -> tuple[str, ...]:
    """A checkpoint as text, in the order of `COLUMNS`: millions of parameters, billions of multiply-adds."""
    params, macs = cost(row)
    return (
        row.arch,
        row.tag,
        f'{params / 1e6:.2f} M',
        f'{macs / 1e9:.3f}',
        'x'.join(map(str, row.input_size)),
        weights_from(row),
        '' if row.top1 is None else f'{row.top1:.2f}',
    )


def describe(row: Checkpoint) -> dict[str, Any]:
    """A checkpoint's name, cost, input size, source of the weights and accuracy, for JSON."""
    params, macs = cost(row)
    return dict(
        name=row.name,
        arch=row.arch,
        tag=row.tag,
        params=params,
        macs=macs,
        input_size=row.input_size,
        weights=weights_from(row),
        top1=row.top1,
    )


def markdown(checkpoints: Sequence[Checkpoint]) -> str:
    """The Markdown table of docs/models.md: a row per architecture, with the names of its checkpoints.

    Size, cost and accuracy are those of the first checkpoint with weights.
    """
    lines: list[tuple[str, ...]] = [('name', 'params', 'GMACs', 'input', 'checkpoints', 'top-1')]
    lines.append(('---',) * len(lines[0]))
    for arch in dict.fromkeys(row.arch for row in checkpoints):
        rows = [row for row in checkpoints if row.arch == arch]
        first = next((row for row in rows if row.sources), rows[0])
        _, _, params, macs, input_size, _, top1 = cells(first)
        tags = ', '.join(row.tag for row in rows if row.sources)
        lines.append((arch, params, macs, input_size, tags, top1))
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
