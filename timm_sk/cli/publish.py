"""`timm-sk weights export | card | publish`: from a checkpoint to a hub."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..checkpoints import CHECKPOINTS
from ..checkpoints.lookup import find_row
from ..console import log_error, one_line_errors, print_line, print_table
from ..publishing.hub_folder import WEIGHTS
from ..publishing.package import export_checkpoint
from ..publishing.release import card_of
from ..publishing.upload import Plan, publish, publish_all, publish_folder

app = typer.Typer(no_args_is_help=True)


@app.command('export')
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar='CHECKPOINT', help='A checkpoint of train.py, or a state dict.')
    ],
    arch: Annotated[str, typer.Option(help='Its architecture.')],
    tag: Annotated[str, typer.Option(help='A name for the weights.')],
    out_dir: Annotated[
        Path | None, typer.Option('--out', metavar='DIR', help='New folder; ./ARCH.TAG if not given.')
    ] = None,
    label_names: Annotated[Path | None, typer.Option(metavar='FILE', help='Names of the classes, one a line.')] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier of the weights' licence.")] = None,
    origin: Annotated[str | None, typer.Option(help='Who made the weights.')] = None,
    base: Annotated[str | None, typer.Option(help='arch.tag whose preprocessing training began from.')] = None,
) -> None:
    """Write a fine-tuned model as a folder that timm and transformers load, ready for a hub."""
    with one_line_errors():
        names = _lines(label_names) if label_names else None
        folder = export_checkpoint(
            checkpoint, arch=arch, tag=tag, out=out_dir, label_names=names, licence=licence, origin=origin, base=base
        )
    print(f'{folder}: loads with timm.create_model("local-dir:{folder}", pretrained=True).')
    print(f'To upload it: hf upload ORG/{arch}.{tag} {folder}')


@app.command('card')
def card(
    name: Annotated[str, typer.Argument(metavar='NAME', help='arch.tag.')],
    org: Annotated[str, typer.Option(help='Organisation that the examples name.')] = 'ORG',
    folder: Annotated[
        Path | None, typer.Option(metavar='DIR', help=f'A folder with its {WEIGHTS}, for size and hash.')
    ] = None,
) -> None:
    """Print a checkpoint's model card."""
    with one_line_errors():
        text = card_of(find_row(name), repo_id=f'{org}/{name}', weights=folder / WEIGHTS if folder else None)
    print(text, end='')


@app.command('publish')
def publish_checkpoints(
    org: Annotated[str, typer.Option(help='Organisation or user of the hub.')],
    name: Annotated[
        str | None, typer.Argument(metavar='NAME|DIR', help='arch.tag of the table, or an exported folder.')
    ] = None,
    everything: Annotated[bool, typer.Option('--all', help='Every checkpoint that may be published.')] = False,
    private: Annotated[bool, typer.Option('--private', help='Make new repositories private.')] = False,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Show what would change, write nothing.')] = False,
) -> None:
    """Publish a checkpoint's or an exported folder's repository: one commit, everything read back, a tag."""
    with one_line_errors():
        if (name is None) != everything:
            raise ValueError('Name one checkpoint, or give --all.')
        if not re.fullmatch(r'[A-Za-z0-9][\w.-]*', org):
            raise ValueError(f'"{org}" is no name of an organisation or user.')
        options: dict[str, Any] = dict(private=private, dry_run=dry_run, show=_show_plan)
        if name is not None:
            is_folder = name not in CHECKPOINTS and Path(name).is_dir()
            release = partial(publish_folder, Path(name)) if is_folder else partial(publish, name)
            outcomes = [release(org, **options)]
        else:
            outcomes = list(publish_all(org, **options))
    rows = [(done.name, done.state, 'see below' if done.state == 'failed' else done.detail) for done in outcomes]
    print_table(('checkpoint', 'state', 'detail'), rows)
    failed = [outcome for outcome in outcomes if outcome.state == 'failed']
    for outcome in failed:
        log_error(f'{outcome.name}: {outcome.detail}')
    if failed:
        raise typer.Exit(1)


def _lines(file: Path) -> tuple[str, ...]:
    lines = (line.strip() for line in file.read_text(encoding='utf-8').splitlines())
    return tuple(line for line in lines if line)


def _show_plan(plan: Plan) -> None:
    state = 'exists' if plan.exists else 'is new'
    tag = f'tag {plan.tag} {"is set" if plan.tagged else "is not set"}'
    print_line(f'{escape(plan.repo_id)} {state}; {tag}')
    print_table(('file', 'change'), plan.changes.items())
