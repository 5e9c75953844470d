"""The checkpoints on this machine: where their weights are, and whether files and folders are valid."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..checkpoints import CHECKPOINTS, Checkpoint, Source
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, TimmSkError, UnloadableModelError, message_of
from ..models._builder import shapes_of
from ..pretrained import (
    ORIGIN_NAME,
    Store,
    check_state_dict,
    fetch,
    hub_file,
    read_checkpoint,
    sha256_of,
    to_our_layout,
)
from ..pretrained.hf_hub import is_cached
from ..pretrained.lookup import find_row, find_rows
from ..registry import architectures
from .hub_folder import CONFIG, GOLDEN, WEIGHTS, check_golden

_MAX_CONFIG_BYTES = 1 << 20
_MAX_CHANNELS = 1024  # of images, hyperspectral ones included
TRUST = {True: 'pinned: its publisher states this hash', False: 'not pinned: no published hash to compare'}


def state_of(row: Checkpoint, store: Store) -> str:
    """Where the weights are: one of `descriptions.STATES`, or 'none'."""
    if row.bundled:
        return 'bundled'
    if (store.folder(row.name) / WEIGHTS).is_file():
        return 'stored'
    if _cached_source(row):
        return 'cached'
    states = dict(hub='on the hub', url='on the web', manual='needs a file')
    return states[row.sources[0].kind] if row.sources else 'none'


def _cached_source(row: Checkpoint) -> Source | None:
    """The first source whose file is in the cache of the Hub's client."""
    of_hub = (source for source in row.sources if source.kind == 'hub' and source.has_classifier)
    return next(filter(is_cached, of_hub), None)


@dataclass
class Verification:
    """Result of verifying one checkpoint."""

    target: str  # name or path
    passed: list[str] = field(default_factory=list)  # the checks that passed, one line each
    problem: str | None = None  # of the check that failed, if one did


def verify(target: str, *, to: Checkpoint | None = None) -> Iterator[Verification]:
    """Verify the hash, file structure, keys, values and outputs of checkpoints; failed checks are not raised.

    The target is a name or pattern of the table whose weights are on this machine, a file, or a checkpoint's folder;
    `to` is the row that a file is meant for, which is found by a published hash if None.

    Raises:
        UnknownModelError: If the target is neither a file, nor a folder, nor a name.
    """
    path = Path(target)
    if target in CHECKPOINTS:
        yield _checked(target, _verify_row(find_row(target)))
    elif path.is_dir():
        yield _checked(target, _verify_folder(path))
    elif path.is_file():
        yield _checked(target, _verify_file(path, to))
    else:
        for row in find_rows([target]):
            yield _checked(row.name, _verify_row(row))


def _checked(target: str, checks: Iterator[str]) -> Verification:
    """Run checks, which yield a line when they pass, up to the first that fails."""
    verification = Verification(target)
    try:
        for line in checks:
            verification.passed.append(line)
    except (TimmSkError, OSError) as error:
        verification.problem = message_of(error)
    return verification


def _verify_row(row: Checkpoint) -> Iterator[str]:
    store = Store()
    if row.bundled:
        path = fetch(row, partial(shapes_of, row))
        yield f'sha256 {sha256_of(path)}, as published'
    elif stored := store.find(row, needs_classifier=False):
        path = stored
        if origin := store.origin(row.name):
            original = f'{origin.sha256[:8]}…, {TRUST[origin.pinned]}'
            yield f'sha256 {origin.stored_sha256}, as stored; the original {original}'
    elif source := _cached_source(row):
        path, sha256 = hub_file(source, store, only_cached=True)
        yield f"sha256 {sha256} in the cache of the Hub's client, {TRUST[source.is_pinned]}"
    else:
        raise CorruptCheckpointError(
            f'{row.name} is not in the local store ({state_of(row, store)}): '
            f'run `timm-sk weights pull {row.name}`, then verify it.'
        )
    yield _verify_tensors(row, path)
    if (golden := path.with_name(GOLDEN)).is_file():
        overlay = dict(file=str(path), source='')
        yield _compare_golden(timm.create_model(row.name, pretrained=True, pretrained_cfg_overlay=overlay), golden)


def _verify_file(path: Path, to: Checkpoint | None) -> Iterator[str]:
    sha256 = sha256_of(path)
    hashes = ((row, source.sha256 or source.sha256_prefix) for row in CHECKPOINTS.values() for source in row.sources)
    row = to or next((row for row, digits in hashes if digits and sha256.startswith(digits)), None)
    match = f'which matches the published hash of {row.name}' if row and not to else 'not one of the published hashes'
    yield f'sha256 {sha256}, {match}'
    yield f'{len(read_checkpoint(path))} tensors, readable'
    if row is None:
        yield 'all values finite; name the checkpoint with --to to check that it fits'
    else:
        yield _verify_tensors(row, path)


def _verify_folder(folder: Path) -> Iterator[str]:
    config = read_config(folder / CONFIG)
    arch, cfg = config['architecture'], config['pretrained_cfg']
    yield f'config of {arch} with {config["num_classes"]} classes'
    weights = folder / WEIGHTS
    yield _compare_hash(folder, f'{arch}.{cfg.get("tag")}')
    tensors = read_checkpoint(weights)
    first_conv = tensors.get(f'{cfg.get("first_conv", "conv1")}.weight')
    in_chans = 3 if first_conv is None or first_conv.ndim != 4 else first_conv.shape[1]
    if not 0 < in_chans <= _MAX_CHANNELS:
        raise MismatchedCheckpointError(f'{weights} is of a net for images of {in_chans} channels.')
    model_args = dict(num_classes=config['num_classes'], in_chans=in_chans)
    on_meta = timm.create_model(arch, device='meta', **model_args).state_dict()  # costs no memory
    check_state_dict(tensors, {key: tensor.shape for key, tensor in on_meta.items()})
    yield f'{len(tensors)} tensors, all finite, with the keys and shapes of {arch}'
    if (folder / GOLDEN).is_file():
        model = timm.create_model(arch, **model_args)
        model.load_state_dict(tensors, strict=False)
        yield _compare_golden(model, folder / GOLDEN)


def _compare_hash(folder: Path, name: str) -> str:
    """Compare the hash of a folder's weights with the one that the store recorded, or the table has."""
    sha256 = sha256_of(folder / WEIGHTS)
    row = CHECKPOINTS.get(name)
    stored = Store(folder.resolve().parent).origin(folder.resolve().name) if (folder / ORIGIN_NAME).is_file() else None
    if stored:
        expected, reference = stored.stored_sha256, 'as stored'
    elif row and row.bundled and row.bundled.sha256:
        expected, reference = row.bundled.sha256, 'as published'
    else:
        return f'sha256 {sha256}; there is no other to compare it with'
    if sha256 != expected:
        raise CorruptCheckpointError(
            f'{folder / WEIGHTS} is damaged: its sha256 is {sha256}, {reference} it was {expected}. '
            'Download the folder again.'
        )
    return f'sha256 {sha256}, {reference}'


def read_config(path: Path) -> dict[str, Any]:
    """Read the architecture, number of classes and preprocessing from a folder's `config.json`.

    Raises:
        UnloadableModelError: If the file cannot be read, or has invalid values.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise UnloadableModelError(f'{path} is larger than {_MAX_CONFIG_BYTES} bytes: download the folder again.')
        config = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UnloadableModelError(message_of(error)) from error
    except (ValueError, RecursionError) as error:
        raise UnloadableModelError(f'Could not read {path}: {error}. Download the folder again.') from error
    if not isinstance(config, dict):
        raise UnloadableModelError(f'{path} holds {type(config).__name__} instead of an object.')
    arch, cfg = config.get('architecture'), config.get('pretrained_cfg') or {}
    if not isinstance(arch, str) or arch not in architectures():
        raise UnloadableModelError(f'Unknown architecture {arch!r} in {path}.')
    num_classes = config.get('num_classes', cfg.get('num_classes') if isinstance(cfg, dict) else None)
    if not isinstance(cfg, dict) or type(num_classes) is not int or not 0 < num_classes < 1_000_000:
        raise UnloadableModelError(f'Invalid num_classes {num_classes!r} in {path}: expected a whole number.')
    if not isinstance(cfg.get('first_conv', 'conv1'), str):
        raise UnloadableModelError(f'Invalid first_conv {cfg["first_conv"]!r} in {path}: expected a name.')
    return dict(architecture=arch, num_classes=num_classes, pretrained_cfg=cfg)


def _verify_tensors(row: Checkpoint, path: Path) -> str:
    tensors = to_our_layout(read_checkpoint(path), arch=row.arch)
    lacks = tensors.keys().isdisjoint(row.classifier_keys) and not all(source.has_classifier for source in row.sources)
    check_state_dict(tensors, shapes_of(row), dropped=row.classifier_keys if lacks else ())
    without = ', without the classifier' if lacks else ''
    return f'{len(tensors)} tensors, all finite, with the keys and shapes of {row.arch}{without}'


def _compare_golden(model: nn.Module, golden: Path) -> str:
    return f'same outputs as in {golden.name}: logits differ by {check_golden(model, golden):.1g}'
