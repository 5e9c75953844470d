"""The weights on this machine: what is here of the table, and fetching, converting and verifying it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..checkpoints import CHECKPOINTS, Checkpoint, Source
from ..checkpoints.lookup import find_row, find_rows
from ..errors import (
    CorruptCheckpointError,
    MismatchedCheckpointError,
    TimmSkError,
    UnloadableModelError,
)
from ..models._builder import shapes_of
from ..pretrained import (
    ORIGIN_NAME,
    Store,
    bundled_folder,
    check_state_dict,
    hub_file,
    obtain,
    read_checkpoint,
    sha256_of,
    store_file,
    to_our_layout,
)
from ..registry import architectures
from .hub_folder import CONFIG, GOLDEN, WEIGHTS, check_golden

_LONGEST_CONFIG = 1 << 20
STATES = ('bundled', 'stored', 'cached', 'on the hub', 'at its makers', 'needs a file')
_MOST_CHANNELS = 1024  # of pictures, hyperspectral ones included


def state_of(row: Checkpoint, store: Store) -> str:
    """Where the weights are, one of `STATES`, or 'none'."""
    if row.bundled:
        return 'bundled'
    if (store.folder(row.name) / WEIGHTS).is_file():
        return 'stored'
    if _cached_source(row):
        return 'cached'
    states = dict(hub='on the hub', url='at its makers', manual='needs a file')
    return states[row.sources[0].kind] if row.sources else 'none'


def _cached_source(row: Checkpoint) -> Source | None:
    """The first source whose file lies in the cache of the hub's client."""
    from huggingface_hub import try_to_load_from_cache

    hubs = (source for source in row.sources if source.kind == 'hub' and source.has_classifier)
    for source in hubs:
        if isinstance(try_to_load_from_cache(source.location or '', source.filename, revision=source.revision), str):
            return source
    return None


def pull(row: Checkpoint, *, store: Store, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Fetch a checkpoint into a local store, unless it is there; returns its folder.

    Args:
        row: The checkpoint.
        store: Where to.
        progress: Called with the bytes that are there and, where known, those of the whole file.

    Raises:
        UnobtainableCheckpointError: If no source works.
    """
    return obtain(row, lambda: shapes_of(row), store=store, store_all=True, progress=progress).parent


def convert(file: Path, row: Checkpoint, *, store: Store | None = None) -> Path:
    """Convert a file of any format and layout into the local store, where `pretrained=True` finds it.

    Returns:
        Its folder.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it is damaged, hostile or of an unknown format.
        MismatchedCheckpointError: If it is not the checkpoint's architecture's.
        CorruptCheckpointError: If its makers published hashes, and none is this file's.
    """
    return store_file(file, row, shapes_of(row), store=store).parent


@dataclass
class Verification:
    """What was checked of a checkpoint, each as a line that says what was found.

    Attributes:
        target: What was verified.
        passed: The checks that held.
        problem: Why it is not all right; None if it is.
    """

    target: str
    passed: list[str] = field(default_factory=list)
    problem: str | None = None


def verify(target: str, *, to: Checkpoint | None = None, store: Store | None = None) -> Iterator[Verification]:
    """Verify checkpoints: their hash, their file's structure, that every key fits, and what the model answers.

    Args:
        target: A name or pattern of the table, whose weights are on this machine; a file; or a checkpoint's folder.
        to: The row that a file is meant for; found by its hash where it is one of the published.
        store: The local store; None for the usual.

    Yields:
        A verification of each; problems are told in it, not raised.

    Raises:
        UnknownModelError: If the target is no file, no folder and no name.
    """
    path = Path(target)
    if target in CHECKPOINTS:
        yield _checked(target, partial(_verify_row, find_row(target), store or Store()))
    elif path.is_dir():
        yield _checked(target, partial(_verify_folder, path))
    elif path.is_file():
        yield _checked(target, partial(_verify_file, path, to))
    else:
        store = store or Store()
        for row in find_rows([target]):
            if row.sources:
                yield _checked(row.name, partial(_verify_row, row, store))


def _checked(target: str, check: Callable[[list[str]], None]) -> Verification:
    verification = Verification(target)
    try:
        check(verification.passed)
    except (TimmSkError, OSError) as error:
        verification.problem = str(error)
    return verification


def _verify_row(row: Checkpoint, store: Store, done: list[str]) -> None:
    if row.bundled:
        path = obtain(row, lambda: shapes_of(row))
        done.append(f'sha256 {sha256_of(path)}, as published')
        folder = bundled_folder(row.name)
    else:
        stored = store.find(row, needs_classifier=False)
        source = _cached_source(row) if stored is None else None
        if source:
            cached, sha256 = hub_file(source, store, only_cached=True)
            trust = 'its makers published it' if source.sha256 else 'as the hub says: intact, not known to be authentic'
            done.append(f"sha256 {sha256} in the cache of the hub's client, {trust}")
            _verify_tensors(row, cached, done)
            return
        if stored is None:
            raise CorruptCheckpointError(
                f'{row.name} is not in the local store ({state_of(row, store)}): '
                f'run `timm-sk weights pull {row.name}`, then verify it.'
            )
        origin = store.origin(row.name)
        path, folder = stored, stored.parent
        if origin:
            trust = 'its makers published it' if origin.trust == 'authentic' else 'intact, not known to be authentic'
            done.append(f'sha256 {origin.stored_sha256}, as stored; the original {origin.sha256[:8]}…: {trust}')
    _verify_tensors(row, path, done)
    _verify_golden(row.name, path, folder / GOLDEN, done)


def _verify_file(path: Path, to: Checkpoint | None, done: list[str]) -> None:
    sha256 = sha256_of(path)
    row = to or _row_by_hash(sha256)
    named = f'which begins as published for {row.name}' if row and not to else 'not one of the published hashes'
    done.append(f'sha256 {sha256}, {named}')
    tensors = read_checkpoint(path)
    done.append(f'{len(tensors)} tensors, readable')
    if row is None:
        _require_finite(tensors, path)
        done.append('all values finite; name the checkpoint with --to to check that it fits')
        return
    _verify_tensors(row, path, done)


def _row_by_hash(sha256: str) -> Checkpoint | None:
    for row in CHECKPOINTS.values():
        for source in row.sources:
            known = source.sha256 or source.sha256_prefix
            if known and sha256.startswith(known):
                return row
    return None


def _verify_folder(folder: Path, done: list[str]) -> None:
    config = read_config(folder / CONFIG)
    arch = config['architecture']
    done.append(f'config of {arch} with {config["num_classes"]} classes')
    weights = folder / WEIGHTS
    done.append(_known_hash(folder, config))
    tensors = read_checkpoint(weights)
    first_conv = tensors.get(f'{config["pretrained_cfg"].get("first_conv", "conv1")}.weight')
    in_chans = 3 if first_conv is None or first_conv.ndim != 4 else first_conv.shape[1]
    if not 0 < in_chans <= _MOST_CHANNELS:
        raise MismatchedCheckpointError(f'{weights} is of a net for pictures of {in_chans} channels.')
    model_args = dict(num_classes=config['num_classes'], in_chans=in_chans)
    shapes = timm.create_model(arch, device='meta', **model_args).state_dict()  # costs no memory
    check_state_dict(tensors, {key: tensor.shape for key, tensor in shapes.items()})
    _require_finite(tensors, weights)
    done.append(f'{len(tensors)} tensors, finite, each of the model')
    model = timm.create_model(arch, **model_args)
    model.load_state_dict(tensors, strict=False)
    _compare_golden(model, folder / GOLDEN, done)


def _known_hash(folder: Path, config: dict[str, Any]) -> str:
    """Compare a folder's weights with the hash that the store recorded, or the table has."""
    found = sha256_of(folder / WEIGHTS)
    row = CHECKPOINTS.get(f'{config["architecture"]}.{config["pretrained_cfg"].get("tag")}')
    stored = Store(folder.resolve().parent).origin(folder.resolve().name) if (folder / ORIGIN_NAME).is_file() else None
    if stored:
        expected, whose = stored.stored_sha256, 'as stored'
    elif row and row.bundled and row.bundled.sha256:
        expected, whose = row.bundled.sha256, 'as published'
    else:
        return f'sha256 {found}; there is no other to compare it with'
    if found != expected:
        raise CorruptCheckpointError(
            f'{folder / WEIGHTS} is damaged: its sha256 is {found}, {whose} it was {expected}. Get the folder again.'
        )
    return f'sha256 {found}, {whose}'


def read_config(path: Path) -> dict[str, Any]:
    """A folder's `config.json`, as far as it is needed to build the model.

    Raises:
        UnloadableModelError: If it cannot be read, or says something that no config of ours or timm's would.
    """
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise UnloadableModelError(f'{path} is longer than a config may be: get the folder again.')
        config = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UnloadableModelError(f'{path} cannot be read: {error}. Get the folder again.') from error
    if not isinstance(config, dict):
        raise UnloadableModelError(f'{path} holds {type(config).__name__} instead of an object.')
    arch = config.get('architecture')
    if not isinstance(arch, str) or arch not in architectures():
        raise UnloadableModelError(f'{path} names the architecture {arch!r}, which timm_sk has not.')
    cfg = config.get('pretrained_cfg') or {}
    num_classes = config.get('num_classes', cfg.get('num_classes') if isinstance(cfg, dict) else None)
    if not isinstance(cfg, dict) or type(num_classes) is not int or not 0 < num_classes < 1_000_000:
        raise UnloadableModelError(f'{path} says {num_classes!r} classes: expected a whole number.')
    if not isinstance(cfg.get('first_conv', 'conv1'), str):
        raise UnloadableModelError(f'{path} says {cfg["first_conv"]!r} for first_conv: expected a name.')
    return dict(architecture=arch, num_classes=num_classes, pretrained_cfg=cfg)


def _verify_tensors(row: Checkpoint, path: Path, done: list[str]) -> None:
    tensors = to_our_layout(read_checkpoint(path), arch=row.arch)
    _require_finite(tensors, path)
    classifier = [f'{row.classifier}.{leaf}' for leaf in ('weight', 'bias')]
    lacks = not any(key in tensors for key in classifier) and any(not source.has_classifier for source in row.sources)
    check_state_dict(tensors, shapes_of(row), dropped=classifier if lacks else ())
    done.append(f'{len(tensors)} tensors, finite, each of {row.arch}{", without the classifier" if lacks else ""}')


def _require_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CorruptCheckpointError(f'{path} has values in {key} that are no numbers: get it again.')


def _verify_golden(name: str, path: Path, golden: Path, done: list[str]) -> None:
    if golden.is_file():
        overlay = dict(file=str(path), source='')
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        _compare_golden(model, golden, done)


def _compare_golden(model: nn.Module, golden: Path, done: list[str]) -> None:
    if golden.is_file():
        done.append(f'answers as {golden.name} says: logits differ by {check_golden(model, golden):.1g}')
