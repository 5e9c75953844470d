"""`timm-sk weights list | show | pull | verify | convert`: the checkpoints on this machine and where they come from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.table import Column

from ..checkpoints import CHECKPOINTS, describe, lookup
from ..checkpoints.lookup import matching
from ..console import log, log_error, one_line_errors, print_line, print_table, progress_bar
from ..errors import TimmSkError
from ..pretrained import Store
from ..publishing import local

app = typer.Typer(no_args_is_help=True, help='Checkpoints: list, fetch, verify, convert, publish.')


@app.command('list')
def list_checkpoints(
    pattern: Annotated[str, typer.Argument(metavar='FILTER', help='Part of a name, or a pattern.')] = '',
    state: Annotated[str | None, typer.Option(help='Only those in this state, such as stored.')] = None,
    as_markdown: Annotated[bool, typer.Option('--markdown', help='Print the tables of docs/checkpoints.md.')] = False,
) -> None:
    """List the checkpoints with their state: bundled, stored, cached, on the hub, at its makers, or needs a file."""
    rows = [row for row in matching(pattern) if row.sources]
    if as_markdown:
        print(describe.markdown(rows))
        return
    with one_line_errors():
        store = Store()
        states = {row.name: local.state_of(row, store) for row in rows}
    shown = [row for row in rows if state in (None, states[row.name])]
    with one_line_errors():
        if state and state not in local.STATES:
            raise ValueError(f'There is no state "{state}": name one of {", ".join(local.STATES)}.')
        if not shown:
            raise ValueError(f'no checkpoint matches "{pattern}"{f" in the state {state}" if state else ""}.')
    lines = []
    for row in shown:
        top1, licence = f'{row.top1:.2f}' if row.top1 else '', row.licence or 'none stated'
        lines.append((row.name, states[row.name], top1, licence, row.origin or ''))
    wide = [max(map(len, cells)) for cells in zip(*(line[:4] for line in lines), strict=True)]  # the last one gives way
    names = ('checkpoint', 'state', 'top-1', 'licence')
    columns = (Column(name, no_wrap=True, min_width=width) for name, width in zip(names, wide, strict=True))
    last = Column('made by', no_wrap=True, overflow='ellipsis')
    print_table([*columns, last], lines)
    print_line(f'{len(shown)} checkpoints. Local store: {escape(str(store.root))}')


@app.command('show')
def show(name: Annotated[str, typer.Argument(metavar='NAME', help='arch.tag.')]) -> None:
    """Say everything that is known of a checkpoint, and how far what is here can be trusted."""
    with one_line_errors():
        store = Store()
        row = lookup.find_row(name)
        origin = store.origin(row.name)
    facts = describe.facts(row) | {'state': local.state_of(row, store)}
    if origin:
        trusted = 'authentic: its makers published the hash' if origin.trust == 'authentic' else 'intact, not authentic'
        facts['stored from'] = f'{origin.kind} {origin.location or origin.filename}, {origin.date}'
        facts['trust'] = f'{trusted}; sha256 of the original {origin.sha256}'
    for fact, text in facts.items():
        print_line(f'[bold]{fact:14}[/bold] {escape(text)}')


@app.command('pull')
def pull(
    names: Annotated[list[str] | None, typer.Argument(metavar='NAME', help='arch.tag, arch or a pattern.')] = None,
    everything: Annotated[
        Path | None, typer.Option('--all', metavar='DIR', help='Fetch all into DIR, to carry to other machines.')
    ] = None,
) -> None:
    """Fetch checkpoints into the local store; what is there already is not fetched again."""
    with one_line_errors():
        if bool(names) == bool(everything):
            raise ValueError('Name checkpoints, or give --all DIR.')
        rows = [row for row in (lookup.find_rows(names) if names else CHECKPOINTS.values()) if row.sources]
    if everything:
        for row in [row for row in rows if row.sources[0].kind == 'manual']:
            log(f'{row.name}: needs a file that only a person can fetch')
            rows.remove(row)
    store = Store(everything) if everything else Store()
    failed = 0
    for row in rows:
        try:
            with progress_bar(row.name, None, DownloadColumn(), TransferSpeedColumn()) as update:
                folder = local.pull(row, store=store, progress=partial(_show_bytes, update))
        except (TimmSkError, OSError) as error:
            failed += 1
            log_error(f'{row.name}: {error}')
        else:
            print_line(escape(f'{row.name}: {folder}'))
    if everything:
        print_line(escape(f'Set TIMM_SK_HOME to a copy of {everything} where there is no network.'))
    if failed:
        raise typer.Exit(1)


def _show_bytes(update: Callable[..., None], received: int, total: int | None) -> None:
    update(completed=received, total=total)


@app.command('verify')
def verify(
    targets: Annotated[list[str], typer.Argument(metavar='NAME|FILE|DIR', help='What to verify.')],
    to: Annotated[str | None, typer.Option(metavar='NAME', help='The checkpoint that a file is meant for.')] = None,
) -> None:
    """Verify hash, structure, keys, values and answers of checkpoints, files or folders."""
    failed = False
    for target in targets:
        with one_line_errors():
            row = lookup.find_row(to) if to else None
            if row and not Path(target).is_file():
                raise ValueError(f'--to says what a file is meant for, and {target} is no file.')
            verifications = list(local.verify(target, to=row))
        for verification in verifications:
            print_line(f'[bold]{escape(verification.target)}[/bold]')
            for line in verification.passed:
                print_line(f'  ok  {escape(line)}')
            if verification.problem:
                failed = True
                log_error(f'{verification.target}: {verification.problem}')
    if failed:
        raise typer.Exit(1)


@app.command('convert')
def convert(
    file: Annotated[Path, typer.Argument(metavar='FILE', help='A checkpoint of any known format and layout.')],
    to: Annotated[str, typer.Option(metavar='NAME', help='The checkpoint that it is: arch.tag.')],
) -> None:
    """Convert a file into the local store, where `pretrained=True` finds it. Nothing in the file is executed."""
    with one_line_errors():
        row = lookup.find_row(to)
        folder = local.convert(file, row)
    print_line(escape(f'{row.name}: {folder}'))
    print_line(f'Load it with timm.create_model("{row.name}", pretrained=True).')
