"""The exported folder of a run, which timm, transformers and the Hub can load."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..atomic_io import atomic_dir
from ..checkpoints import CHECKPOINTS, Checkpoint
from ..checkpoints.descriptions import NOT_ESTABLISHED
from ..publishing.hub_folder import (
    CONFIG,
    EXPORTED,
    SETTINGS,
    fine_tuned_row,
    recipe_settings,
    require_tag,
    write_folder,
)
from ..publishing.model_card import as_markdown
from .config import Config, checked

# Settings of the machine of the run, which are not published.
_PRIVATE = ('data', 'data_dir', 'class_map', 'output', 'resume', 'features', 'features_format', 'device')
_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


def export_run(
    folder: Path,
    model: nn.Module,
    *,
    config: Config,
    class_names: list[str] | None,
    metrics: Mapping[str, float],
    dataset: str,
    preprocessing: Mapping[str, Any],
) -> Path:
    """Write weights, config, golden batch, model card and settings of a fine-tuned model; returns the folder.

    An older export of the same architecture and tag is replaced atomically. Paths of this machine are not written; of
    the data's path only the last part is. The model stays as it is, on any device and in any mode. Metrics are those
    of the validation split, `val_top1` and `val_top5` in percent; the preprocessing is as timm resolves it.

    Raises:
        ValueError: If the tag is invalid, the number of names is wrong, or the folder holds something else.
        UnpublishableError: If the written files do not load as the same model.
    """
    require_tag(config.tag)
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    start = _start(cfg, config.model)
    provenance, base_model = _provenance(cfg, config, start)
    _require_replaceable(folder, start.arch, config.tag)
    row = fine_tuned_row(
        start,
        config.tag,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        input_size=preprocessing['input_size'],
        label_names=tuple(class_names) if class_names else None,
        licence=config.licence,
        origin='timm-sk finetune',
        dataset=dataset,
        top1=round(metrics['val_top1'], 3),
        top5=round(metrics['val_top5'], 3),
        evaluation='timm-sk finetune, on the validation split',
        recipe=f'timm-sk finetune DATA --config {SETTINGS}',
        **{key: _hashable(preprocessing[key]) for key in _PREPROCESSING if preprocessing.get(key) is not None},
    )
    exported = copy.deepcopy(model).cpu().float().eval()
    settings = _shareable(config)
    with atomic_dir(folder) as written:
        (written / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding='utf-8')
        write_folder(
            written,
            exported,
            row,
            settings=recipe_settings(settings),
            base_model=base_model,
            trained_on=f'{dataset}, training split',
            provenance=provenance,
            notes=_notes(settings, metrics),
        )
    return folder


def require_shareable(settings: Any, where: str) -> None:
    """Check that the settings of an export, as read from YAML, are those that `export_run` writes.

    Raises:
        ValueError: If one is unknown, of this machine, or invalid.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f'{where} holds {type(settings).__name__} instead of settings')
    found = checked(settings, where)
    if private := sorted({*found} & {*_PRIVATE}):
        raise ValueError(f'{where} has {private[0]}, a setting of your machine: remove it')
    config = Config(**found)
    settings, shareable = config.as_dict(), _shareable(config)
    if paths := [name for name in shareable if settings[name] != shareable[name]]:
        raise ValueError(f'{where} has a path of your machine in {paths[0]}: write {shareable[paths[0]]!r} instead')


def _shareable(config: Config) -> dict[str, Any]:
    settings = {name: value for name, value in config.as_dict().items() if name not in _PRIVATE}
    if config.initial_checkpoint:
        settings['initial_checkpoint'] = Path(config.initial_checkpoint).name
    *source, path = config.model.split(':', 1)
    if source not in (['hf-hub'], ['hf_hub']):
        settings['model'] = ':'.join([*source, Path(path).name])
    return settings


def _start(cfg: Mapping[str, Any], name: str) -> Checkpoint:
    """The row of the initial weights; for architectures of timm, what timm knows of them."""
    arch = cfg['architecture']
    row = CHECKPOINTS.get(name) or CHECKPOINTS.get(f'{arch}.{cfg.get("tag")}')
    if row is not None and row.arch == arch:
        return row
    facts = {key: _hashable(cfg[key]) for key in ('input_size', 'pool_size', 'first_conv', 'classifier') if key in cfg}
    return Checkpoint(name=f'{arch}.{cfg.get("tag") or ""}', family='timm', **facts)


def _provenance(cfg: Mapping[str, Any], config: Config, row: Checkpoint) -> tuple[str, str | None]:
    """Origin and licence of the weights, for the card, and the repository of the initial ones, if it is known."""
    own = f'The licence of these weights is {config.licence or NOT_ESTABLISHED}.'
    licence = hub_id = None
    if config.initial_checkpoint:
        name = f'the file {as_markdown(Path(config.initial_checkpoint).name)}'
    elif not config.pretrained:
        return f'Trained by `timm-sk finetune` from random weights. {own}', None
    elif ':' not in config.model and row.name in CHECKPOINTS:
        name, licence, hub_id = f'`{row.name}`', row.licence, row.hub_id
    else:
        name = '.'.join(filter(None, (cfg['architecture'], cfg.get('tag')))).replace('`', '')
        name, licence = f'`{name}`', cfg.get('license')
        hub_id = config.model.removeprefix('hf-hub:') if config.model.startswith('hf-hub:') else cfg.get('hf_hub_id')
    theirs = f'whose licence is {as_markdown(str(licence or NOT_ESTABLISHED))}'
    text = f'Fine-tuned by `timm-sk finetune` from {name}, {theirs}. {own}'
    return text, None if ':' in (hub_id or '') else hub_id


def _require_replaceable(folder: Path, arch: str, tag: str) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        ours = (there['architecture'], there['pretrained_cfg']['tag']) == (arch, tag)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f'{folder} exists and is not an export of {arch}.{tag}: nothing was written. Move it away.')
    if others := sorted({path.name for path in folder.iterdir()} - {*EXPORTED}):
        raise ValueError(
            f'{folder} holds {others[0]}, which is not of an export, and would be replaced: nothing was written. '
            'Move it away.'
        )


def _notes(settings: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Tables of the metrics, and of all settings that differ from the defaults, for the card."""
    defaults = Config().as_dict()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    rounded = {name: f'{value:.6g}' for name, value in metrics.items()}
    parts = [
        '# Run',
        _table('metric', rounded),
        'Metrics that begin with `val_` are of the validation split; accuracies are in percent.',
        _table('setting', changed),
        f'All settings are in `{SETTINGS}`; those not in the table have their defaults.',
    ]
    return '\n\n'.join(parts)


def _table(head: str, facts: Mapping[str, Any]) -> str:
    cells = {name: as_markdown(str(value)) for name, value in facts.items()}
    return '\n'.join([f'| {head} | value |', '|---|---|', *(f'| {name} | {cell} |' for name, cell in cells.items())])


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
