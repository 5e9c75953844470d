"""`timm-sk weights list | show | pull | verify | convert`: checkpoints, and where their weights are."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.table import Column

from ..checkpoints import CHECKPOINTS, descriptions
from ..console import log, log_error, one_line_errors, print_line, print_table, progress_bar
from ..errors import TimmSkError, message_of, nearest
from .commands import command

app = typer.Typer(no_args_is_help=True, help='List, download, verify, convert, package and publish checkpoints.')


@command(app, 'list', 'timm-sk weights list "resnest50d*"', 'timm-sk weights list --state stored --json')
def list_checkpoints(
    pattern: Annotated[str, typer.Argument(metavar='FILTER', help='Part of a name, or a pattern such as "sk*".')] = '',
    state: Annotated[str | None, typer.Option(help=f'Only those that are {", ".join(descriptions.STATES)}.')] = None,
    as_markdown: Annotated[bool, typer.Option('--markdown', help='Print the tables of docs/checkpoints.md.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """List the checkpoints and where their weights are."""
    from ..pretrained import Store, lookup
    from ..publishing import local

    rows = [row for row in lookup.search_rows(pattern) if row.sources]
    if as_markdown:
        print(descriptions.markdown(rows))
        return
    with one_line_errors():
        store = Store()
        states = {row.name: local.state_of(row, store) for row in rows}
        if state and state not in descriptions.STATES:
            raise ValueError(f'Invalid state "{state}": expected one of {", ".join(descriptions.STATES)}.')
        shown = [row for row in rows if state in (None, states[row.name])]
        if not shown:
            near = '' if rows else nearest(pattern, CHECKPOINTS)
            raise ValueError(f'No checkpoint matches "{pattern}"{f" in the state {state}" if state else ""}.{near}')
    if as_json:
        keys = ('name', 'top1', 'dataset', 'licence', 'origin')
        documents = [{key: getattr(row, key) for key in keys} | dict(state=states[row.name]) for row in shown]
        print(json.dumps(documents, indent=2))
        return
    cells = []
    for row in shown:
        top1, licence = f'{row.top1:.2f}' if row.top1 else '', row.licence or 'none stated'
        cells.append((row.name, states[row.name], top1, licence, row.origin or ''))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = ('checkpoint', 'state', 'top-1', 'licence')
    columns = [Column(name, no_wrap=True, min_width=width) for name, width in zip(names, widths, strict=False)]
    print_table([*columns, Column('made by', no_wrap=True, overflow='ellipsis')], cells)
    log(f'{len(shown)} checkpoints. Local store: {store.root}')


@command(app, 'show', 'timm-sk weights show resnest50d.in1k', 'timm-sk weights show skresnet34 --json')
def show(
    name: Annotated[str, typer.Argument(metavar='NAME', help='arch.tag, or arch for its default.')],
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Show a checkpoint's sources, licence, accuracy, preprocessing and hashes."""
    from ..catalog import describe_checkpoint

    with one_line_errors():
        facts = describe_checkpoint(name).facts()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for fact, text in facts.items():
        print_line(f'[bold]{fact:14}[/bold] {escape(text)}')


@command(app, 'pull', 'timm-sk weights pull resnest50d skresnet34', 'timm-sk weights pull --all carried/')
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar='NAME', help='arch.tag, arch for its default, or a pattern such as "resnest50d.*".'),
    ] = None,
    everything: Annotated[
        Path | None, typer.Option('--all', metavar='DIR', help='Download all checkpoints into DIR, for other machines.')
    ] = None,
) -> None:
    """Download checkpoints into the local store, unless they are in it."""
    from ..models._builder import shapes_of
    from ..pretrained import Store, fetch, lookup

    with one_line_errors():
        if bool(names) == bool(everything):
            raise ValueError('Name checkpoints, or give --all DIR.')
        rows = [row for row in (lookup.find_rows(names) if names else CHECKPOINTS.values()) if row.sources]
    store, failed = Store(everything), False
    for row in rows:
        if everything and row.sources[0].kind == 'manual':
            log(f'{row.name}: skipped, its file must be downloaded by hand')
            continue
        try:
            with progress_bar(row.name, None, DownloadColumn(), TransferSpeedColumn()) as update:
                path = fetch(
                    row,
                    partial(shapes_of, row),
                    needs_classifier=row.has_classifier,
                    store=store,
                    store_all=True,
                    progress=partial(_show_bytes, update),
                )
        except (TimmSkError, OSError) as error:
            failed = True
            log_error(f'{row.name}: {message_of(error)}')
        else:
            print_line(escape(f'{row.name}: {path.parent}'))
    if everything:
        log(f'Set TIMM_SK_HOME to a copy of {everything} on a machine without network.')
    if failed:
        raise typer.Exit(1)


def _show_bytes(update: Callable[..., None], received: int, total: int | None) -> None:
    update(completed=received, total=total)


@command(app, 'verify', 'timm-sk weights verify resnest50d.in1k', 'timm-sk weights verify net.pth --to resnest50d.in1k')
def verify(
    targets: Annotated[list[str], typer.Argument(metavar='NAME|FILE|DIR', help='What to verify.')],
    to: Annotated[str | None, typer.Option(metavar='NAME', help='Checkpoint that a file is meant for.')] = None,
) -> None:
    """Verify the hash, structure, keys, values and outputs of checkpoints, files or folders."""
    from ..pretrained import lookup
    from ..publishing import local

    failed = False
    for target in targets:
        with one_line_errors():
            row = lookup.find_row(to) if to else None
            if row and not Path(target).is_file():
                raise ValueError(f'--to needs a file, got {target}.')
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


@command(app, 'convert', 'timm-sk weights convert sk_resnet50.pth.tar --to skresnet50_insight.insight_in1k')
def convert(
    file: Annotated[Path, typer.Argument(metavar='FILE', help='Checkpoint file of any known format and layout.')],
    to: Annotated[str, typer.Option(metavar='NAME', help='Checkpoint that it is: arch.tag.')],
) -> None:
    """Convert a file into the local store, where `pretrained=True` finds it. Nothing in the file is executed."""
    from ..models._builder import shapes_of
    from ..pretrained import lookup, store_file

    with one_line_errors():
        row = lookup.find_row(to)
        folder = store_file(file, row, shapes_of(row)).parent
    print_line(escape(f'{row.name}: {folder}'))
    log(f'Load it with timm.create_model("{row.name}", pretrained=True). Import timm_sk first.')
