"""Exported folders that may be published: a copy of their files, and checks of everything in it."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from ..atomic_io import no_follow
from ..checkpoints import CHECKPOINTS
from ..errors import TimmSkError, UnpublishableError
from .hub_folder import (
    CARD,
    CONFIG,
    EXPORTED,
    GOLDEN,
    RECIPE,
    RECIPE_KEYS,
    SETTINGS,
    WEIGHTS,
    read_recipe,
    require_same_logits,
)
from .licences import LICENCE_RULE, is_licence

_METADATA = {'format', 'checkpoint', 'licence', 'origin'}  # of model.safetensors


def copy_exported(exported: Path, folder: Path) -> None:
    """Copy the files of an export; others are left out, and no link is followed.

    Raises:
        UnpublishableError: If one of them is a link, or not a regular file.
    """
    for name in EXPORTED:
        path = exported / name
        if not os.path.lexists(path):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UnpublishableError(f'{path} is a link or not a regular file: put a copy of the file in its place.')
        with open(path, 'rb', opener=no_follow) as source, (folder / name).open('wb') as target:
            shutil.copyfileobj(source, target)


def require_exported(folder: Path) -> str:
    """Check that a folder is a complete export with nothing else in its files, and return its `arch.tag`.

    Raises:
        UnpublishableError: If a file or the licence is missing, a file holds what no export does, the name is in the
            table, or the folder does not load as the model that its golden file is of.
    """
    for name in (WEIGHTS, CONFIG, GOLDEN, CARD):
        if not (folder / name).is_file():
            raise UnpublishableError(f'{folder} has no {name}: expected a complete exported folder.')
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        _require_fields(config, _MODEL_FIELDS, CONFIG)
        cfg = config['pretrained_cfg']
        name, licence = f'{config["architecture"]}.{cfg["tag"]}', cfg.get('license')
        card_licence = ModelCard.load(folder / CARD).data.license
        if (folder / RECIPE).exists():
            _require_fields(read_recipe(folder), dict.fromkeys(RECIPE_KEYS, _is_plain), RECIPE)
        if (folder / SETTINGS).exists():
            _require_settings(folder / SETTINGS)
        with safe_open(folder / WEIGHTS, 'pt') as file:
            _require_fields(file.metadata() or {}, dict.fromkeys(_METADATA, _is_text), f'the metadata of {WEIGHTS}')
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = ' '.join((str(error) if isinstance(error, TimmSkError) else repr(error)).split())
        raise UnpublishableError(f'{folder} is not of an export: {reason}') from error
    except yaml.YAMLError as error:
        raise UnpublishableError(
            f'{folder}: {CARD} or {SETTINGS} is not YAML: {" ".join(str(error).split())}'
        ) from error
    if not re.fullmatch(r'\w+\.[A-Za-z0-9][\w.-]*', name):
        raise UnpublishableError(f'Invalid name "{name}" in {folder / CONFIG}: expected an architecture and a tag.')
    if name in CHECKPOINTS:
        raise UnpublishableError(f'{name} is a checkpoint of the table: export {folder} under another tag.')
    if not licence or card_licence != licence:
        raise UnpublishableError(
            f'{folder} states {"no" if not licence else "two"} licence{"s" * bool(licence)}: write the one of its '
            f'weights as "license" into pretrained_cfg of {CONFIG} and at the head of {CARD}.'
        )
    if not is_licence(licence):
        raise UnpublishableError(f'{folder} states the licence {licence!r}: expected {LICENCE_RULE}.')
    try:
        require_same_logits(folder)
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UnpublishableError(f'Could not load {folder}: {reason}') from error
    return name


def _require_settings(path: Path) -> None:
    from ..finetune.export import require_shareable  # finetune itself needs this package

    require_shareable(yaml.safe_load(path.read_text(encoding='utf-8')), path.name)


def _require_fields(found: Any, fields: Mapping[str, Callable[[Any], bool]], where: str) -> None:
    if not isinstance(found, Mapping):
        raise UnpublishableError(f'{where} holds {type(found).__name__} instead of an object.')
    for key, value in found.items():
        if key not in fields:
            raise UnpublishableError(f'{where} has the field {key!r}, which an export does not have: remove it.')
        if not fields[key](value):
            raise UnpublishableError(f'{where} has an invalid {key}: {value!r:.80}.')


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1_000_000


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(is_one: Callable[[Any], bool], value: Any, *, or_one: bool = False) -> bool:
    return (isinstance(value, list) and all(map(is_one, value))) or (or_one and is_one(value))


def _is_object(fields: Mapping[str, Callable[[Any], bool]], name: str, value: Any) -> bool:
    _require_fields(value, fields, name)
    return True


# The fields of config.json, and what is valid in each; `config_of` writes them.
_PRETRAINED_FIELDS: dict[str, Callable[[Any], bool]] = dict(
    tag=_is_text,
    license=_is_text,
    custom_load=False.__eq__,
    fixed_input_size=lambda value: isinstance(value, bool),
    crop_mode=_is_text,
    input_size=partial(_are, _is_count),
    pool_size=partial(_are, _is_count),
    mean=partial(_are, _is_number),
    std=partial(_are, _is_number),
    interpolation=_is_text,
    crop_pct=_is_number,
    num_classes=_is_count,
    label_names=partial(_are, _is_text),
    first_conv=partial(_are, _is_text, or_one=True),
    classifier=partial(_are, _is_text, or_one=True),
)
_MODEL_FIELDS: dict[str, Callable[[Any], bool]] = dict(
    architecture=_is_text,
    num_classes=_is_count,
    num_features=_is_count,
    global_pool=_is_text,
    label_names=partial(_are, _is_text),
    model_args=partial(_is_object, dict(global_pool=_is_text, in_chans=_is_count), 'model_args'),
    pretrained_cfg=partial(_is_object, _PRETRAINED_FIELDS, 'pretrained_cfg'),
)
