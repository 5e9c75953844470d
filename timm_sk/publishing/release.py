"""Which rows and exported folders may be published, and all that the repository of one holds."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from yaml import YAMLError

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..errors import UnpublishableError
from ..models._builder import shapes_of
from ..pretrained import Origin, Store, bundled_folder, obtain
from .hub_folder import (
    CARD,
    CONFIG,
    GOLDEN,
    RECIPE,
    WEIGHTS,
    golden_inputs,
    require_same_logits,
    write_golden,
    write_model,
)
from .model_card import eval_results, hash_of, render_card


def refusal(row: Checkpoint) -> str | None:
    """Why a row may not be published from here; None if it may."""
    if not row.sources:
        return f'{row.name} has no weights.'
    if row.licence is None:
        return (
            f'The makers of {row.name} state no licence: whoever has a copy may convert it for themselves, '
            'nobody can publish it from here.'
        )
    if row.origin is None:
        return f'The table does not say who made {row.name}: establish its origin first.'
    if not any(hash_of(source) for source in row.sources):
        return f'Nothing tells the right weights of {row.name} from others: establish a hash of a source first.'
    return None


def require_publishable(row: Checkpoint) -> None:
    """Refuse a row that may not be published.

    Raises:
        UnpublishableError: With the reason.
    """
    if reason := refusal(row):
        raise UnpublishableError(reason)


def build_folder(row: Checkpoint, folder: Path, *, repo_id: str) -> None:
    """Write all that a repository of a row shall hold, from its verified weights, and load it again to be sure.

    Args:
        row: The row; a bundled one keeps its own weights' file, goldens and examples, byte for byte.
        folder: An empty folder.
        repo_id: What the card's examples load from.

    Raises:
        UnpublishableError: If the row may not be published, or what was written does not give the same logits.
        UnobtainableCheckpointError: If no source with a published hash gives the weights.
    """
    require_publishable(row)
    weights, origin = vouched_weights(row)
    model = timm.create_model(row.name, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights), source=''))
    metadata = dict(checkpoint=row.name, licence=row.licence or '', origin=row.origin or '')
    write_model(folder, model, row, metadata=metadata)
    if row.bundled:
        shutil.copytree(bundled_folder(row.name), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CONFIG))
    else:
        write_golden(folder / GOLDEN, model, golden_inputs(row.input_size), metadata=metadata)
    card = card_of(row, repo_id=repo_id, weights=folder / WEIGHTS, origin=origin)
    for path, text in {CARD: card, **eval_results(row)}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding='utf-8')
    require_same_logits(folder)


def vouched_weights(row: Checkpoint) -> tuple[Path, Origin | None]:
    """A row's weights from a source whose hash its makers published, and what they were made from.

    What a local store has from elsewhere, from a person's file or a hub that only says its own hash, is not taken.

    Raises:
        UnobtainableCheckpointError: If no such source gives them.
    """
    if row.bundled:
        return obtain(row, partial(shapes_of, row)), None
    vouched = replace(row, sources=tuple(s for s in row.sources if hash_of(s) and s.has_classifier))
    store = Store()
    origin = store.origin(row.name)
    places = {(source.kind, source.location, source.filename) for source in vouched.sources}
    if origin and (origin.kind, origin.location, origin.filename) not in places:
        store = Store(store.root / '.releases')
    path = obtain(vouched, partial(shapes_of, row), store=store, store_all=True)
    return path, store.origin(row.name)


def card_of(row: Checkpoint, *, repo_id: str, weights: Path | None = None, origin: Origin | None = None) -> str:
    """A row's card; a bundled one's own card becomes its notes.

    Args:
        row: The row.
        repo_id: What the card's examples load from.
        weights: The repository's weights' file; if None, a bundled one's own.
        origin: What they were made from.
    """
    if row.bundled is None:
        return render_card(row, repo_id=repo_id, weights=weights, origin=origin)
    ours = bundled_folder(row.name)
    notes, settings = (ours / CARD).read_text(encoding='utf-8'), json.loads((ours / RECIPE).read_text())
    return render_card(row, repo_id=repo_id, weights=weights or ours / WEIGHTS, settings=settings, notes=notes)


def require_exported(folder: Path) -> str:
    """Refuse a folder that is not, in full, what an export writes; gives its `arch.tag`.

    Raises:
        UnpublishableError: If a file or the licence is missing, its name is one of the table's, or it does not load, or
            not as the model whose goldens it has.
    """
    for name in (WEIGHTS, CONFIG, GOLDEN, CARD):
        if not (folder / name).is_file():
            raise UnpublishableError(f'{folder} has no {name}: it is no exported folder, or not all of one.')
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        cfg = config['pretrained_cfg']
        name, licence = f'{config["architecture"]}.{cfg["tag"]}', cfg.get('license')
        told = ModelCard.load(folder / CARD).data.license
    except (ValueError, KeyError, TypeError, AttributeError, YAMLError) as error:
        raise UnpublishableError(f'{folder}: {CONFIG} or {CARD} is none of an export: {error!r}.') from error
    if not re.fullmatch(r'\w+\.[A-Za-z0-9][\w.-]*', name):
        raise UnpublishableError(f'{folder} is called "{name}" in its {CONFIG}, which is no architecture and tag.')
    if name in CHECKPOINTS:
        raise UnpublishableError(f'{name} is a checkpoint of the table: export {folder} under another tag.')
    if not licence or told != licence:
        raise UnpublishableError(
            f'{folder} states {"no" if not licence else "two"} licence{"s" * bool(licence)}: write the one of its '
            f'weights as "license" into pretrained_cfg of {CONFIG} and at the head of {CARD}.'
        )
    try:
        require_same_logits(folder)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UnpublishableError(f'{folder} cannot be loaded: {reason}') from error
    return name
