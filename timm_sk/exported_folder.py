"""The folder of a fine-tuned model: its facts, and how it is written, whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoints import Checkpoint
from .hub_folder import CARD, GOLDEN, RECIPE, WEIGHTS, golden_inputs, write_golden, write_model
from .model_card import MAIN_SETTINGS, render_card
from .release_folder import require_same_logits

# Further settings, under the names of timm's train.py, that a card tells unless they are off.
_TECHNIQUES = (
    *('opt', 'momentum', 'sched', 'warmup_epochs', 'smoothing', 'aa', 'mixup', 'cutmix'),
    *('reprob', 'drop', 'drop_path', 'model_ema', 'bce_loss', 'clip_grad', 'seed'),
    *('layer_decay', 'freeze', 'freeze_bn', 'linear_probe', 'no_aug'),
)


def require_tag(tag: str) -> None:
    """Refuse what cannot be the name of weights.

    Raises:
        ValueError: Which says what a tag is made of.
    """
    if not re.fullmatch(r'[A-Za-z0-9][\w.-]*', tag):
        raise ValueError(f'A tag is made of letters, digits, "_", "-" and ".", got "{tag}".')


def told_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training run that its card and its `recipe.json` tell."""
    plain = {key: option for key, option in options.items() if isinstance(option, int | float | str)}
    settings = {key: plain[key] for key in MAIN_SETTINGS if key in plain}
    return settings | {key: plain[key] for key in _TECHNIQUES if plain.get(key)}


def fine_tuned_row(
    start: Checkpoint,
    tag: str,
    *,
    num_classes: int,
    input_size: tuple[int, int, int],
    label_names: tuple[str, ...] | None,
    **changed: Any,
) -> Checkpoint:
    """The facts of fine-tuned weights: those of the row that training began from, as far as it did not change them.

    Args:
        start: That row.
        tag: A name for the weights.
        num_classes: Of the classifier.
        input_size: (channels, height, width) of the pictures.
        label_names: Names of the classes in order.
        **changed: Further fields of the new row: its licence and origin, its preprocessing where that is another.

    Raises:
        ValueError: If the label names are not as many as the classes.
    """
    if label_names and len(label_names) != num_classes:
        raise ValueError(f'There are {len(label_names)} label names for {num_classes} classes: name each class once.')
    unknown: dict[str, Any] = dict.fromkeys(('licence', 'origin', 'dataset', 'top1', 'top5', 'evaluation', 'recipe'))
    facts: dict[str, Any] = unknown | changed
    return replace(
        start,
        name=f'{start.arch}.{tag}',
        sources=(),
        input_size=input_size,
        pool_size=start.pool_size if input_size[1:] == start.input_size[1:] else None,
        num_classes=num_classes,
        label_names=label_names,
        **facts,
    )


def write_exported(
    folder: Path, model: nn.Module, row: Checkpoint, *, settings: Mapping[str, Any], **of_card: Any
) -> None:
    """Write weights, config, goldens, recipe and card, and load them again to be sure.

    Args:
        folder: An empty folder.
        model: The model, in float32 on the CPU.
        row: Its facts.
        settings: How it was trained, as `told_settings` gives them.
        **of_card: Further arguments of `render_card`.

    Raises:
        UnpublishableError: If what was written does not give the same logits.
    """
    metadata = dict(checkpoint=row.name, licence=row.licence or '', origin=row.origin or '')
    write_model(folder, model, row, metadata=metadata)
    write_golden(folder / GOLDEN, model, golden_inputs(row.input_size), metadata=metadata)
    if settings:
        (folder / RECIPE).write_text(json.dumps(settings, indent=2) + '\n')
    card = render_card(row, repo_id=f'ORG/{row.name}', weights=folder / WEIGHTS, settings=settings, **of_card)
    (folder / CARD).write_text(card, encoding='utf-8')
    require_same_logits(folder)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, which takes its place when it is complete; an error leaves all as it was.

    Args:
        folder: Where it shall be; an older one is replaced, and is there again at the next call if a process was
            killed while it did that.
    """
    new, old = (folder.with_name(f'.{folder.name}.{state}') for state in ('new', 'old'))
    _clear(folder, new, old)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob('*'):
            if file.is_file():
                with file.open('rb+') as opened:
                    os.fsync(opened.fileno())
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
    finally:
        _clear(folder, new, old)


def _clear(folder: Path, new: Path, old: Path) -> None:
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
