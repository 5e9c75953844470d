"""The folder that a run leaves, which timm and transformers load and a hub takes."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..atomic_io import staged
from ..checkpoints import CHECKPOINTS, Checkpoint
from ..checkpoints.describe import NOT_ESTABLISHED
from ..publishing.hub_folder import CONFIG, SETTINGS, fine_tuned_row, recipe_settings, require_tag, write_exported
from .config import Config

# Settings that say where things lie on the machine of the run, which is nobody else's concern.
_OF_THE_MACHINE = ('data', 'data_dir', 'class_map', 'output', 'resume', 'features', 'features_format', 'device')
_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


@dataclass(frozen=True, kw_only=True)
class _Parent:
    """The weights that a run began with: their name, licence and repository, as far as they are known."""

    name: str
    licence: str | None = None
    hub_id: str | None = None


def export_run(
    folder: Path,
    model: nn.Module,
    *,
    config: Config,
    class_names: list[str] | None,
    metrics: Mapping[str, float],
    dataset: str,
    input_size: tuple[int, int, int],
    data_config: Mapping[str, Any],
) -> Path:
    """Write a fine-tuned model's folder: weights, config, goldens, card, and the settings of its run.

    Args:
        folder: Where; an older one of the same architecture and tag is replaced once the new one is complete.
        model: The model, on any device, in any mode; it stays as it is.
        config: The run's settings; those that tell where things lie on this machine are left out of the folder.
        class_names: Names of the classes in order, if they have any.
        metrics: What the model reached on the validation part; `top1` and `top5`, or `val_top1` and `val_top5`, are
            accuracies in percent.
        dataset: What to call the data; of a path that is there the last part.
        input_size: (channels, height, width) of the images.
        data_config: The preprocessing: `mean`, `std`, `interpolation`, `crop_pct`, as timm resolves them.

    Returns:
        The folder.

    Raises:
        ValueError: If the tag is no name, the names are not as many as the classes, or the folder holds something else.
        UnpublishableError: If what was written does not load as the same model.
    """
    require_tag(config.tag)
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    start, parent = _start(cfg, config.model), _parent(cfg, config)
    _require_replaceable(folder, start.arch, config.tag)
    row = fine_tuned_row(
        start,
        config.tag,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        input_size=input_size,
        label_names=tuple(class_names) if class_names else None,
        licence=config.licence,
        origin='timm-sk finetune',
        dataset=dataset,
        top1=_percent(metrics, 'top1'),
        top5=_percent(metrics, 'top5'),
        evaluation='timm-sk finetune, on the validation part',
        recipe=f'timm-sk finetune DATA --config {SETTINGS}',
        **{key: _fact(data_config[key]) for key in _PREPROCESSING if data_config.get(key) is not None},
    )
    judged = copy.deepcopy(model).cpu().float().eval()
    settings = _shareable(config)
    with staged(folder) as written:
        (written / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding='utf-8')
        write_exported(
            written,
            judged,
            row,
            settings=recipe_settings(settings),
            base_model=parent.hub_id if parent else None,
            trained_on=f'{dataset}, training part',
            story=_story(parent, config.licence),
            notes=_notes(settings, metrics),
        )
    return folder


def _shareable(config: Config) -> dict[str, Any]:
    settings = {name: value for name, value in config.as_dict().items() if name not in _OF_THE_MACHINE}
    if config.initial_checkpoint:
        settings['initial_checkpoint'] = Path(config.initial_checkpoint).name
    source, _, path = config.model.partition(':')
    if source == 'local-dir':
        settings['model'] = f'{source}:{Path(path).name}'
    return settings


def _start(cfg: Mapping[str, Any], name: str) -> Checkpoint:
    """The row of what the run began with; of other architectures than ours, what timm knows of it."""
    arch = cfg['architecture']
    row = CHECKPOINTS.get(name) or CHECKPOINTS.get(f'{arch}.{cfg.get("tag")}')
    if row is not None and row.arch == arch:
        return row
    facts = {key: _fact(cfg[key]) for key in ('input_size', 'pool_size', 'first_conv', 'classifier') if key in cfg}
    return Checkpoint(name=f'{arch}.{cfg.get("tag") or ""}', family='timm', **facts)


def _parent(cfg: Mapping[str, Any], config: Config) -> _Parent | None:
    if config.initial_checkpoint:
        return _Parent(name=f'the file {Path(config.initial_checkpoint).name}')
    if not config.pretrained:
        return None
    row = _start(cfg, config.model)
    from_table = ':' not in config.model and CHECKPOINTS.get(row.name)
    if from_table:
        return _Parent(name=f'`{row.name}`', licence=row.licence, hub_id=row.hub_id)
    hub_id = config.model.removeprefix('hf-hub:') if config.model.startswith('hf-hub:') else cfg.get('hf_hub_id')
    own = '.'.join(filter(None, (cfg['architecture'], cfg.get('tag'))))
    return _Parent(name=f'`{own}`', licence=cfg.get('license'), hub_id=None if ':' in (hub_id or '') else hub_id)


def _require_replaceable(folder: Path, arch: str, tag: str) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        ours = (there['architecture'], there['pretrained_cfg']['tag']) == (arch, tag)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f'{folder} exists and is no exported {arch}.{tag}: nothing was written. Move it away.')


def _story(parent: _Parent | None, licence: str | None) -> str:
    """Where the weights come from, and under which licences, for the card."""
    own = f'The licence of these weights is {licence or NOT_ESTABLISHED}.'
    if parent is None:
        return f'Trained by `timm-sk finetune` from random weights. {own}'
    theirs = f'{parent.licence}' if parent.licence else f'{NOT_ESTABLISHED}'
    return f'Fine-tuned by `timm-sk finetune` from {parent.name}, whose licence is {theirs}. {own}'


def _notes(settings: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """The card's tables of what was reached, and of all settings that are not the defaults."""
    defaults = Config().as_dict()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    reached = {name: f'{value:.6g}' for name, value in metrics.items()}
    parts = [
        '# Run',
        _table('metric', reached),
        'Those that begin with `val_` are of the validation part; accuracies are in percent.',
        _table('setting', changed),
        f'All settings are in `{SETTINGS}`; those that the table leaves out have their defaults.',
    ]
    return '\n\n'.join(parts)


def _table(head: str, facts: Mapping[str, Any]) -> str:
    rows = [f'| {name} | {_cell(value)} |' for name, value in facts.items()]
    return '\n'.join([f'| {head} | value |', '|---|---|', *rows])


def _cell(value: Any) -> str:
    return ' '.join(str(value).replace('|', r'\|').split())


def _percent(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name, metrics.get(f'val_{name}'))
    return None if value is None else round(float(value), 3)


def _fact(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
