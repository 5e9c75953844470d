"""A model as a folder that timm (`hf-hub:`, `local-dir:`) and transformers (`AutoModelForImageClassification`) load.

`model.safetensors`, `config.json`, `golden.safetensors` (a batch and what the model answers) and what the card adds.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoints import Checkpoint
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, UnpublishableError
from ..pretrained import CONFIG_NAME, WEIGHTS_NAME, hub_config, save_safetensors
from .model_card import MAIN_SETTINGS, render_card

WEIGHTS, CONFIG = WEIGHTS_NAME, CONFIG_NAME
GOLDEN, CARD, RECIPE, SETTINGS = 'golden.safetensors', 'README.md', 'recipe.json', 'config.yaml'
EXPORTED = (CARD, CONFIG, SETTINGS, GOLDEN, WEIGHTS, RECIPE)  # what an export of fine-tuned weights writes
GOLDEN_PICTURES = 2
_MOST_GOLDEN_VALUES = 16 * 3 * 512 * 512
GOLDEN_TOLERANCE = 1e-4  # of the largest logit; kernels of different machines agree to about 1e-6
# Further settings, under the names of timm's train.py, that a card tells unless they are off.
_TECHNIQUES = (
    *('opt', 'momentum', 'sched', 'warmup_epochs', 'smoothing', 'aa', 'mixup', 'cutmix'),
    *('reprob', 'drop', 'drop_path', 'model_ema', 'bce_loss', 'clip_grad', 'seed'),
    *('layer_decay', 'freeze', 'freeze_bn', 'linear_probe', 'no_aug'),
)


def write_model(folder: Path, model: nn.Module, row: Checkpoint, *, metadata: Mapping[str, str]) -> None:
    """Write the weights, in the order of the state dict, and the config.

    Args:
        folder: Where; it must exist.
        model: The row's model with its weights.
        row: The facts for the config.
        metadata: Strings for the header of the weights' file.
    """
    save_safetensors(model.state_dict(), folder / WEIGHTS, metadata=dict(format='pt', **metadata))
    (folder / CONFIG).write_text(json.dumps(config_of(model, row), indent=2) + '\n')


def config_of(model: nn.Module, row: Checkpoint) -> dict[str, Any]:
    """What `config.json` says of a row and its model."""
    pooling = getattr(getattr(model, 'global_pool', None), 'pool_type', None)
    of_model: dict[str, Any] = dict(num_features=model.num_features)
    if pooling:
        of_model['global_pool'] = pooling
    if changed := _model_args(row, pooling):
        of_model['model_args'] = changed
    return hub_config(row, **of_model)


def _model_args(row: Checkpoint, pooling: str | None) -> dict[str, Any]:
    """What a model is built with beyond the architecture's own; not the classes, which transformers passes itself."""
    pool = dict(global_pool=pooling) if pooling not in (None, '', 'avg') else {}
    return pool | (dict(in_chans=row.input_size[0]) if row.input_size[0] != 3 else {})


def golden_inputs(input_size: tuple[int, int, int]) -> Tensor:
    """The same normalised noise wherever it is drawn, [2, C, H, W]."""
    return torch.randn(GOLDEN_PICTURES, *input_size, generator=torch.Generator().manual_seed(0))


def write_golden(path: Path, model: nn.Module, inputs: Tensor, *, metadata: Mapping[str, str]) -> None:
    """Write a batch [N, C, H, W] and the model's logits [N, K], both in float32."""
    tensors = dict(inputs=inputs, logits=_logits(model, inputs))
    save_safetensors(tensors, path, metadata=dict(format='pt', **metadata))


def check_golden(model: nn.Module, path: Path) -> float:
    """Compare a model's logits with those that a golden file holds; gives the largest difference.

    Args:
        model: On any device, in any mode; it is judged in eval mode and left as it was.
        path: What `write_golden` wrote.

    Raises:
        CorruptCheckpointError: If the file is no golden file of a model of this shape.
        MismatchedCheckpointError: If they differ by more than machines do.
    """
    golden = read_golden(path)
    try:
        logits = _logits(model, golden['inputs'])
    except RuntimeError as error:  # from torch, where the batch is no picture for the model
        raise CorruptCheckpointError(f'{path} is of another model: {str(error).splitlines()[0]}.') from error
    if logits.shape != golden['logits'].shape:
        shapes = f'logits {list(golden["logits"].shape)}, the model gives {list(logits.shape)}'
        raise CorruptCheckpointError(f'{path} is of another model: it has {shapes}.')
    difference = float((logits - golden['logits']).abs().max())
    largest = float(golden['logits'].abs().max())
    if not difference <= GOLDEN_TOLERANCE * largest:
        raise MismatchedCheckpointError(
            f'The model answers otherwise than {path} says: logits differ by {difference:.2g}, the largest is '
            f'{largest:.2g}. The weights or the code are not those that wrote it.'
        )
    return difference


def read_golden(path: Path) -> dict[str, Tensor]:
    """The `inputs` and `logits` of a golden file.

    Raises:
        CorruptCheckpointError: If it cannot be read, or holds something else.
    """
    try:
        golden = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptCheckpointError(
            f'{path} cannot be read: {error}. Fetch or export the checkpoint again.'
        ) from error
    if set(golden) != {'inputs', 'logits'} or golden['inputs'].ndim != 4:
        raise CorruptCheckpointError(f'{path} holds {sorted(golden)} instead of a batch of inputs and its logits.')
    if not 0 < golden['inputs'].numel() <= _MOST_GOLDEN_VALUES or not golden['logits'].numel():
        raise CorruptCheckpointError(f'{path} holds inputs {list(golden["inputs"].shape)}: no batch to compare with.')
    if not all(torch.isfinite(tensor).all() for tensor in golden.values()):
        raise CorruptCheckpointError(f'{path} holds values that are no numbers. Fetch or export it again.')
    return golden


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    parameter, was_training = next(model.parameters()), model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(inputs.to(device=parameter.device, dtype=parameter.dtype)).float().cpu()
    finally:
        model.train(was_training)


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


def require_same_logits(folder: Path) -> None:
    """Load a folder as a user would, and compare with its goldens.

    Raises:
        UnpublishableError: If the logits differ by more than rounding.
    """
    try:
        check_golden(timm.create_model(f'local-dir:{folder}', pretrained=True), folder / GOLDEN)
    except MismatchedCheckpointError as error:
        raise UnpublishableError(f'{folder} loads as another model than it was written from. {error}') from error
