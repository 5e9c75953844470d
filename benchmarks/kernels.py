"""Fuse, select, its backward pass, and one SK unit stage by stage, as shares of the bandwidth that a copy reaches.

`python benchmarks/kernels.py --out kernels.csv`; docs/bench.md describes the columns. With `--convolutions`: what
bias, ReLU and shortcut cost after a convolution. Exits with 1 if something disagrees with its reference or fails.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bandwidth import StageRow, measure_convolutions, measure_stages

from timm_sk.bench.matrix import DTYPES, MEMORY_FORMATS, require_names
from timm_sk.bench.results import append, require_appendable
from timm_sk.devices import open_device
from timm_sk.inference.timing import require_rounds

SMALL = [2, 16, 8, 8]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write, and return the exit code."""
    options = _parser().parse_args(arguments)
    shape = SMALL if options.smoke else options.shape
    rounds = None if options.smoke else options.rounds
    rows: list[StageRow] = []
    try:
        device = open_device(options.device, ('cpu', 'cuda'))
        require_names('dtype', options.dtypes, DTYPES)
        require_names('memory format', options.formats, MEMORY_FORMATS)
        if rounds is not None:
            require_rounds(rounds)
        if options.out:
            require_appendable(options.out, StageRow.columns())
        for dtype, memory_format in product(options.dtypes, options.formats):
            place = dict(dtype=dtype, memory_format=memory_format, device=device, rounds=rounds)
            if options.convolutions:
                measured = measure_convolutions(shape[0], size=min(shape[2:]), **place)
            else:
                groups = min(options.groups, shape[1] // 4)
                measured = measure_stages(shape, branches=options.branches, groups=groups, **place)
            for found in measured:
                if options.out:
                    append(options.out, found)
                print(table(found), flush=True)
                rows += found
    except (ValueError, OSError, RuntimeError) as error:
        print(f'kernels.py: {next(iter(str(error).splitlines()), type(error).__name__)}', file=sys.stderr)
        return 1
    if not options.convolutions and not any(row.implementation == 'triton' for row in rows):
        print('kernels.py: no Triton kernel ran: these are the figures of PyTorch alone', file=sys.stderr)
    wrong = ('disagrees',) if options.convolutions else ('disagrees', 'fails')  # cuDNN's fused ones may be refused
    return int(any(row.status in wrong for row in rows))


def table(rows: Sequence[StageRow]) -> str:
    """One setting as text: a line for each stage."""
    first = rows[0]
    size = 'x'.join(str(number) for number in (first.batch, first.channels, first.height, first.width))
    lines = [
        f'{first.branches} branches of {size}, {first.dtype}, {first.memory_format}, {first.processor}',
        f'{"stage":22} {"by":8} {"MB":>9} {"ms":>9} {"least ms":>9} {"GB/s":>8} {"of copy":>8}  agreement',
    ]
    for row in rows:
        cells = [
            _cell(row.least_bytes / 1e6, '.3f', 9),
            _cell(row.median_ms, '.4f', 9),
            _cell(row.least_ms, '.4f', 9),
            _cell(row.gb_per_s, '.1f', 8),
            _cell(row.of_copy_median, '.3f', 8),
        ]
        agreement = f'{row.status} {_cell(row.difference, ".0e")}'
        lines.append(f'{row.stage:22} {row.implementation:8} {" ".join(cells)}  {agreement}'.rstrip())
    return '\n'.join([*lines, ''])


def _cell(value: float | None, form: str, width: int = 0) -> str:
    return ('' if value is None else format(value, form)).rjust(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', help='cuda, cuda:<index> or cpu')
    parser.add_argument('--shape', type=_numbers, default=[64, 256, 56, 56], help='B,C,H,W of a branch')
    parser.add_argument('--branches', type=int, default=2, choices=(1, 2, 3, 4))
    parser.add_argument('--groups', type=int, default=32, help="groups of the unit's convolutions")
    parser.add_argument('--dtypes', type=_names, default=['bfloat16'], help=f'some of {", ".join(DTYPES)}')
    parser.add_argument('--formats', type=_names, default=list(MEMORY_FORMATS), help='contiguous, channels_last')
    parser.add_argument('--rounds', type=int, default=9, help='timed rounds, at least 7')
    parser.add_argument('--out', type=Path, metavar='CSV', help='add the rows to this file')
    parser.add_argument('--convolutions', action='store_true', help='measure convolutions and what follows them')
    parser.add_argument('--smoke', action='store_true', help='small maps: compare only')
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(',')]
    if len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f'a shape is four numbers of at least 1, got {text}: 64,256,56,56')
    return numbers


if __name__ == '__main__':
    sys.exit(main())
