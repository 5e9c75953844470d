"""Which rows may be published, and the files of their repositories."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm

from ..checkpoints import Checkpoint
from ..errors import UnpublishableError
from ..models._builder import shapes_of
from ..pretrained import Origin, Store, bundled_folder, fetch
from .hub_folder import CARD, WEIGHTS, read_recipe, require_same_logits, write_folder
from .model_card import eval_results, render_card


def reason_not_to_publish(row: Checkpoint) -> str | None:
    """Why a row may not be published from here; None if it may."""
    if not row.sources:
        return f'{row.name} has no weights.'
    if row.licence is None:
        return f'The publisher of {row.name} states no licence: convert it for your own use, but do not publish it.'
    if not row.has_classifier:
        return f'{row.name} is a backbone without a classifier: only classifiers are published from here.'
    if '-nc-' in row.licence:
        return f'The licence of {row.name}, {row.licence}, allows no commercial use: it is not published from here.'
    if row.origin is None:
        return f'The table does not say who made {row.name}: establish its origin first.'
    if not any(source.published_hash for source in row.sources):
        return f'The table has no hash of the weights of {row.name}: establish the hash of a source first.'
    return None


def build_folder(row: Checkpoint, folder: Path, *, repo_id: str) -> None:
    """Write the files of a row's repository from its verified weights, and check that they load as the same model.

    The files of a bundled row are copied, except for its card.

    Raises:
        UnpublishableError: If the row may not be published, or the folder does not give the same logits.
        UnobtainableCheckpointError: If no source with a published hash gives the weights.
    """
    if reason := reason_not_to_publish(row):
        raise UnpublishableError(reason)
    weights, origin = pinned_weights(row)
    if row.bundled:
        shutil.copytree(bundled_folder(row.name), folder, dirs_exist_ok=True)
        (folder / CARD).write_text(card_of(row, repo_id=repo_id), encoding='utf-8')
        require_same_logits(folder)
    else:
        model = timm.create_model(row.name, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights), source=''))
        write_folder(folder, model, row, repo_id=repo_id, origin=origin)
    for path, text in eval_results(row).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding='utf-8')


def pinned_weights(row: Checkpoint) -> tuple[Path, Origin | None]:
    """A row's weights from a source whose hash was published, and the source.

    Weights in the local store that come from elsewhere, such as a user's file, are not used.

    Raises:
        UnobtainableCheckpointError: If no such source gives them.
    """
    if row.bundled:
        return fetch(row, partial(shapes_of, row)), None
    pinned = replace(row, sources=tuple(s for s in row.sources if s.published_hash and s.has_classifier))
    store = Store()
    origin = store.origin(row.name)
    if origin and not any(origin.is_from(source) for source in pinned.sources):
        store = Store(store.root / '.releases')
    path = fetch(pinned, partial(shapes_of, row), store=store, store_all=True)
    return path, store.origin(row.name)


def card_of(row: Checkpoint, *, repo_id: str, weights: Path | None = None) -> str:
    """The model card of a row, as `render_card` fills it; a bundled row's own card becomes its notes."""
    if row.bundled is None:
        return render_card(row, repo_id=repo_id, weights=weights)
    bundled = bundled_folder(row.name)
    notes, settings = (bundled / CARD).read_text(encoding='utf-8'), read_recipe(bundled)
    return render_card(row, repo_id=repo_id, weights=weights or bundled / WEIGHTS, settings=settings, notes=notes)
