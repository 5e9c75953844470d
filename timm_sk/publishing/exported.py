"""Exported folders that may be published: a copy of their files, and checks of everything in it."""

import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
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
        UnpublishableError: If one of them is a link, or not a regular file, or the folder has programs of torch.
    """
    if programs := sorted(exported.glob('*.pt2')):
        raise UnpublishableError(f'{programs[0]} holds code, which loading runs: remove it, and publish the weights.')
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
        _require_fields(config, _CONFIG, CONFIG)
        cfg = config['pretrained_cfg']
        if cfg.get('custom_load'):
            raise UnpublishableError(f'{CONFIG} has custom_load, which lets timm run code of the model: remove it.')
        name, licence = f'{config["architecture"]}.{cfg["tag"]}', cfg.get('license')
        card_licence = ModelCard.load(folder / CARD).data.license
        if (folder / RECIPE).exists():
            _require_fields(read_recipe(folder), dict.fromkeys(RECIPE_KEYS, str | int | float), RECIPE)
        if (folder / SETTINGS).exists():
            from ..finetune.export import require_shareable  # finetune itself needs this package

            require_shareable(yaml.safe_load((folder / SETTINGS).read_text(encoding='utf-8')), SETTINGS)
        with safe_open(folder / WEIGHTS, 'pt') as file:
            _require_fields(file.metadata() or {}, dict.fromkeys(_METADATA, str), f'the metadata of {WEIGHTS}')
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


def _require_fields(found: Any, kinds: Mapping[str, Any], where: str) -> None:
    """Check fields by the type of each, or a list of one type, or the kinds of an object's fields."""
    if not isinstance(found, Mapping):
        raise UnpublishableError(f'{where} holds {type(found).__name__} instead of an object.')
    for key, value in found.items():
        if key not in kinds:
            raise UnpublishableError(f'{where} has the field {key!r}, which an export does not have: remove it.')
        kind = kinds[key]
        if isinstance(kind, Mapping):
            _require_fields(value, kind, key)
        elif not (_are(kind, value) if isinstance(kind, list) else isinstance(value, kind)):
            raise UnpublishableError(f'{where} has an invalid {key}: {value!r:.80}.')


def _are(kind: list[Any], values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind[0]) for value in values)


# The fields of config.json, as `config_of` writes them.
_PRETRAINED_CFG = dict(
    **dict.fromkeys(('tag', 'license', 'crop_mode', 'interpolation', 'first_conv', 'classifier'), str),
    mean=[int | float],
    std=[int | float],
    input_size=[int],
    pool_size=[int],
    **dict.fromkeys(('custom_load', 'fixed_input_size'), bool),
    crop_pct=int | float,
    num_classes=int,
    label_names=[str],
)
_CONFIG = dict(
    architecture=str,
    num_classes=int,
    num_features=int,
    global_pool=str,
    label_names=[str],
    model_args=dict(global_pool=str, in_chans=int),
    pretrained_cfg=_PRETRAINED_CFG,
)
