"""`timm-sk bench`: compare our models with timm's, as docs/bench.md describes."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from ..console import log, log_error, number_column, one_line_errors, print_table
from ..optional_packages import require_package

if TYPE_CHECKING:
    from ..bench import Case, Row

FORMS_HELP = (
    'Some of eager, reparameterized, folded, folded_merged, folded_joined, deployed, merged, compiled, inductor, '
    'max_autotune; all but merged and max_autotune also as a CUDA graph, such as compiled+graph.'
)


def bench(
    models: Annotated[list[str] | None, typer.Argument(metavar='MODEL', help='Architectures of this package.')] = None,
    sides: Annotated[
        str, typer.Option(help='Some of ours, timm, plain (the backbone without a selection).')
    ] = 'ours,timm,plain',
    forms: Annotated[str | None, typer.Option(help=FORMS_HELP)] = None,
    dtypes: Annotated[str | None, typer.Option(help='Some of float32, bfloat16, and on CUDA float16.')] = None,
    formats: Annotated[str | None, typer.Option(help='Some of contiguous, channels_last.')] = None,
    tasks: Annotated[str, typer.Option(help='Some of inference, training (one step of SGD).')] = 'inference,training',
    batch: Annotated[int | None, typer.Option(min=1, help='Images in a step; 8 by default.')] = None,
    size: Annotated[int | None, typer.Option(min=32, help='Height and width of images; 224 by default.')] = None,
    rounds: Annotated[int, typer.Option(help='Timed rounds, at least 7.')] = 7,
    device: Annotated[str, typer.Option(help='cpu, cuda or cuda:<index>.')] = 'cpu',
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's by default.")] = None,
    out_file: Annotated[Path | None, typer.Option('--out', metavar='CSV', help='Add the rows to this file.')] = None,
    scaling: Annotated[str, typer.Option(help='Axis: batch, resolution, branches or depth.')] = '',
    plot: Annotated[Path | None, typer.Option(metavar='PNG', help='Plot the ratios, or the scaling.')] = None,
    from_file: Annotated[Path | None, typer.Option('--from', metavar='CSV', help='Plot this, measure nothing.')] = None,
    smoke: Annotated[bool, typer.Option('--smoke', help='Small images: compare and measure memory only.')] = False,
) -> None:
    """Compare time and memory of our models with timm's and the plain backbones.

    Timings are reported only for models whose outputs match timm's. Lists are separated by commas. Default: forms up to
    compiled, float32 and bfloat16, both memory formats; with --scaling or --smoke eager and reparameterized in
    channels_last, with --scaling in float32. The rows of each form are written as soon as they are known.
    """
    import torch

    from ..bench import COLUMNS, cases, measure
    from ..bench.machine import require_supported
    from ..bench.matrix import DEFAULT_FORMS, DEPTHS, MEMORY_FORMATS, MODELS
    from ..bench.plot import figure_of
    from ..bench.results import append, read, require_appendable
    from ..devices import open_device
    from ..inference.timing import require_rounds

    few = bool(scaling or smoke)
    with one_line_errors():
        if plot:
            require_package('matplotlib', 'bench')
        if from_file:
            if not plot:
                raise ValueError('--from needs --plot PNG, the file to draw.')
            figure_of(read(from_file)).savefig(plot, dpi=150)
            return
        where = open_device(device, ('cpu', 'cuda'))
        if not smoke:
            require_rounds(rounds)
        if out_file:
            require_appendable(out_file)
        if threads:
            torch.set_num_threads(threads)
        chosen = list(
            cases(
                models or (['skresnet18'] if smoke else DEPTHS if scaling == 'depth' else MODELS),
                dtypes=_names(dtypes or ('float32' if scaling else 'float32,bfloat16')),
                memory_formats=_names(formats or ','.join(['channels_last'] if few else MEMORY_FORMATS)),
                tasks=_names(tasks),
                batch=batch or (2 if smoke else 8),
                size=size or (64 if smoke else 224),
                scaling=scaling,
            )
        )
        if not chosen:
            raise ValueError('Nothing to measure: a training step needs at least 2 images.')
        wanted = _names(forms or ','.join(DEFAULT_FORMS[:2] if few else DEFAULT_FORMS))
        for case in chosen:
            require_supported(where, dtype=case.dtype, forms=wanted)
        rows: list[Row] = []
        for case in chosen:
            timed = None if smoke else rounds
            for found in measure(case, forms=wanted, sides=_names(sides), device=where, rounds=timed, log=log):
                rows += found
                if out_file:
                    append(out_file, found)
                _print(case, found)
        if plot and not smoke:
            results = [dict(zip(COLUMNS, row.cells(), strict=True)) for row in rows]
            figure_of(results).savefig(plot, dpi=150)
    failed = [row for row in rows if row.status in ('disagrees', 'fails')]
    for row in failed:
        by = f': {row.compared} differs by {row.difference:.2g}, more than {row.bound:.2g}' if row.compared else ''
        log_error(f'{row.arch} {row.side} {row.form} {row.task} {row.dtype} {row.memory_format} {row.status}{by}')
    if failed:
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def _print(case: 'Case', rows: 'Sequence[Row]') -> None:
    """Print one form of a case: a line per variant."""
    names = ('ms', 'min-max', 'images/s', 'ratio', 'min-max', 'of convs', 'peak MB', 'saved MB', 'ratio', 'agreement')
    lines = [
        (
            _number(row.median_ms, '.1f'),
            _range(row.min_ms, row.max_ms, '.1f'),
            _number(row.images_per_s, '.1f'),
            _number(row.ratio_median, '.2f'),
            _range(row.ratio_min, row.ratio_max, '.2f'),
            _number(row.of_convolutions_median, '.2f'),
            _number(row.peak_bytes, '.1f', 1e6),
            _number(row.saved_bytes_per_image, '.2f', 1e6),
            _number(row.saved_ratio, '.2f'),
            f'{row.status} {_number(row.difference, ".0e")}',
        )
        for row in rows
    ]
    shown = [any(column) for column in zip(*lines, strict=True)]
    columns = [Column('variant', no_wrap=True), *map(number_column, compress(names, shown))]
    cells = [(f'{row.side} {row.form}', *compress(line, shown)) for row, line in zip(rows, lines, strict=True)]
    print_table(columns, cells, title=str(case), min_width=132)


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return '' if value is None else format(value / unit, form)


def _range(low: float | None, high: float | None, form: str) -> str:
    return '' if low is None or high is None else f'{low:{form}}-{high:{form}}'
