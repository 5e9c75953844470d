"""`timm-sk weights package | card | publish`: from a checkpoint to the Hub."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..checkpoints import CHECKPOINTS
from ..console import log, log_error, one_line_errors, print_line, print_table
from .commands import command

if TYPE_CHECKING:
    from ..publishing.upload import Plan

app = typer.Typer(no_args_is_help=True)


@command(
    app,
    'package',
    'timm-sk weights package last.pth.tar --arch sknet50 --tag pets --label-names labels.txt --base sknet50',
)
def package(
    checkpoint: Annotated[
        Path, typer.Argument(metavar='CHECKPOINT', help="Checkpoint of timm's train.py, or a state dict.")
    ],
    arch: Annotated[str, typer.Option(help='Architecture.')],
    tag: Annotated[str, typer.Option(help='Tag of the weights.')],
    out_dir: Annotated[
        Path | None, typer.Option('--out', metavar='DIR', help='New folder.', show_default='./ARCH.TAG')
    ] = None,
    label_names: Annotated[Path | None, typer.Option(metavar='FILE', help='Names of the classes, one a line.')] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier of the weights' licence.")] = None,
    origin: Annotated[str | None, typer.Option(help='Author of the weights.')] = None,
    base: Annotated[
        str | None, typer.Option(help='arch.tag of the weights whose input size and preprocessing were used.')
    ] = None,
) -> None:
    """Write a fine-tuned model as a folder that timm, transformers and the Hub can load."""
    from ..publishing.package import package_checkpoint

    with one_line_errors():
        lines = label_names.read_text(encoding='utf-8').splitlines() if label_names else []
        names = tuple(line.strip() for line in lines if line.strip()) if label_names else None
        folder = package_checkpoint(
            checkpoint, arch=arch, tag=tag, out=out_dir, label_names=names, licence=licence, origin=origin, base=base
        )
    print(folder)
    log(f'Load it with timm.create_model("local-dir:{folder}", pretrained=True). Import timm_sk first.')
    log(f'Upload it with: hf upload ORG/{arch}.{tag} {folder}')


@command(app, 'card', 'timm-sk weights card resnest50d.in1k')
def card(
    name: Annotated[str, typer.Argument(metavar='NAME', help='arch.tag.')],
    org: Annotated[str, typer.Option(help='Organisation in the examples.')] = 'ORG',
    folder: Annotated[
        Path | None, typer.Option(metavar='DIR', help='Folder with model.safetensors, to fill in its size and hash.')
    ] = None,
) -> None:
    """Print a checkpoint's model card."""
    from ..pretrained.lookup import find_row
    from ..publishing.hub_folder import WEIGHTS
    from ..publishing.release import card_of

    with one_line_errors():
        row = find_row(name)
        text = card_of(row, repo_id=f'{org}/{row.name}', weights=folder / WEIGHTS if folder else None)
    print(text, end='')


@command(app, 'publish', 'timm-sk weights publish sknet_atto.digits --org ORG --dry-run')
def publish_checkpoints(
    org: Annotated[str, typer.Option(help='Organisation or user on the Hub.')],
    name: Annotated[
        str | None, typer.Argument(metavar='NAME|DIR', help='arch.tag of the table, or an exported folder.')
    ] = None,
    everything: Annotated[bool, typer.Option('--all', help='Publish every checkpoint that may be published.')] = False,
    private: Annotated[bool, typer.Option('--private', help='Make new repositories private.')] = False,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Show what would change, and write nothing.')] = False,
) -> None:
    """Publish a checkpoint or an exported folder on the Hub: one commit, every file read back, a tag."""
    from ..publishing.upload import Publisher

    with one_line_errors():
        if (name is None) != everything:
            raise ValueError('Name one checkpoint, or give --all.')
        if not re.fullmatch(r'[A-Za-z0-9][\w.-]*', org):
            raise ValueError(f'Invalid organisation or user "{org}".')
        publisher = Publisher(org=org, private=private, dry_run=dry_run, show=_show_plan)
        if name is None:
            outcomes = list(publisher.publish_all())
        elif name not in CHECKPOINTS and Path(name).is_dir():
            outcomes = [publisher.publish_folder(Path(name))]
        else:
            outcomes = [publisher.publish(name)]
    rows = [(done.name, done.state, 'see below' if done.state == 'failed' else done.detail) for done in outcomes]
    print_table(('checkpoint', 'state', 'detail'), rows)
    failed = [outcome for outcome in outcomes if outcome.state == 'failed']
    for outcome in failed:
        log_error(f'{outcome.name}: {outcome.detail}')
    if failed:
        raise typer.Exit(1)


def _show_plan(plan: 'Plan') -> None:
    state = 'is new' if plan.head is None else 'exists'
    print_line(escape(f'{plan.repo_id} {state}; tag {plan.tag} {"is set" if plan.tagged else "is not set"}'))
    print_table(('file', 'change'), plan.changes.items())
