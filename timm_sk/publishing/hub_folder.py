"""A model as a folder that timm (`hf-hub:`, `local-dir:`) and transformers (`AutoModelForImageClassification`) load.

It has `model.safetensors`, `config.json`, `golden.safetensors` (a batch of inputs and the model's logits) and a card.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..atomic_io import read_json, write_json
from ..checkpoints import Checkpoint
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, UnpublishableError, UnreadableCheckpointError
from ..models.modes import eval_mode
from ..pretrained import CONFIG_NAME, WEIGHTS_NAME, read_checkpoint, save_safetensors
from .model_card import MAIN_SETTINGS, render_card

WEIGHTS, CONFIG = WEIGHTS_NAME, CONFIG_NAME
GOLDEN, CARD, RECIPE, SETTINGS = 'golden.safetensors', 'README.md', 'recipe.json', 'config.yaml'
EXPORTED = (CARD, CONFIG, SETTINGS, GOLDEN, WEIGHTS, RECIPE)  # files of an export of fine-tuned weights
RECIPE_VERSION = 1  # of the format of recipe.json
GOLDEN_TOLERANCE = 1e-4  # of the largest logit; machines differ by about 1e-6
_GOLDEN_IMAGES = 2
MAX_SIDE = 2048  # of inputs, in pixels
_MAX_GOLDEN_VALUES, _MAX_GOLDEN_IMAGES = 12 << 20, 16  # of the inputs
_MAX_GOLDEN_BYTES = 4 * _MAX_GOLDEN_VALUES + (32 << 20)  # and logits of up to a million classes
# Further settings, under the names of timm's train.py, that a card lists if they are on.
_TECHNIQUES = (
    *('opt', 'momentum', 'sched', 'warmup_epochs', 'smoothing', 'aa', 'mixup', 'cutmix'),
    *('reprob', 'drop', 'drop_path', 'model_ema', 'bce_loss', 'clip_grad', 'seed'),
    *('layer_decay', 'freeze', 'freeze_bn', 'linear_probe', 'no_aug'),
)
RECIPE_KEYS = (*MAIN_SETTINGS, *_TECHNIQUES)


def write_model(folder: Path, model: nn.Module, row: Checkpoint, *, metadata: Mapping[str, str]) -> None:
    """Write the weights, in the order of the state dict and with `metadata` in their header, and the config."""
    save_safetensors(model.state_dict(), folder / WEIGHTS, metadata=dict(format='pt', **metadata))
    write_json(folder / CONFIG, config_of(model, row))


def config_of(model: nn.Module, row: Checkpoint) -> dict[str, Any]:
    """The content of `config.json`."""
    pooling = getattr(getattr(model, 'global_pool', None), 'pool_type', None)
    of_model = dict(num_features=model.num_features, **(dict(global_pool=pooling) if pooling else {}))
    model_args: dict[str, Any] = {}  # without num_classes, which transformers passes itself
    if pooling not in (None, 'avg'):
        model_args['global_pool'] = pooling
    if row.input_size[0] != 3:
        model_args['in_chans'] = row.input_size[0]
    return row.hub_config(**of_model, **(dict(model_args=model_args) if model_args else {}))


def golden_inputs(input_size: tuple[int, int, int]) -> Tensor:
    """Normalised noise [2, C, H, W], the same on every machine."""
    return torch.randn(_GOLDEN_IMAGES, *input_size, generator=torch.Generator().manual_seed(0))


def write_golden(path: Path, model: nn.Module, inputs: Tensor, *, metadata: Mapping[str, str]) -> None:
    """Write a batch [N, C, H, W] and the model's logits [N, K], both in float32."""
    tensors = dict(inputs=inputs, logits=_logits(model, inputs))
    save_safetensors(tensors, path, metadata=dict(format='pt', **metadata))


def check_golden(model: nn.Module, path: Path) -> float:
    """Compare a model's logits with those in a golden file, and return the largest difference.

    The model may be on any device and in any mode; it runs in eval mode, and its mode is restored.

    Raises:
        CorruptCheckpointError: If the file is not a golden file of a model of this shape.
        MismatchedCheckpointError: If the logits differ by more than rounding.
    """
    golden = read_golden(path)
    try:
        logits = _logits(model, golden['inputs'])
    except RuntimeError as error:  # from torch, if the inputs do not fit the model
        raise CorruptCheckpointError(f'{path} is of another model: {str(error).splitlines()[0]}.') from error
    if logits.shape != golden['logits'].shape:
        shapes = f'logits {list(golden["logits"].shape)}, the model gives {list(logits.shape)}'
        raise CorruptCheckpointError(f'{path} is of another model: it has {shapes}.')
    difference = float((logits - golden['logits']).abs().max())
    largest = float(golden['logits'].abs().max())
    if not difference <= GOLDEN_TOLERANCE * largest:
        raise MismatchedCheckpointError(
            f'The logits differ from those in {path} by {difference:.2g}; the largest is {largest:.2g}. '
            'The weights or the code are not those that wrote it.'
        )
    return difference


def read_golden(path: Path) -> dict[str, Tensor]:
    """Read the `inputs` and `logits` of a golden file.

    Raises:
        CorruptCheckpointError: If the file cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_GOLDEN_BYTES:
            raise CorruptCheckpointError(f'{path} is larger than {_MAX_GOLDEN_BYTES} bytes: it is no golden file.')
        golden = read_checkpoint(path)
    except OSError as error:
        raise CorruptCheckpointError(
            f'{path} cannot be read: {error}. Download or export the checkpoint again.'
        ) from error
    except UnreadableCheckpointError as error:
        raise CorruptCheckpointError(str(error)) from error
    is_batch = set(golden) == {'inputs', 'logits'} and golden['inputs'].ndim == 4 and golden['logits'].numel() > 0
    if not is_batch or not _is_small(golden['inputs'].shape):  # the model's work, and its memory
        shapes = {name: list(tensor.shape) for name, tensor in golden.items()}
        raise CorruptCheckpointError(f'{path} holds {shapes} instead of a batch of inputs and its logits.')
    return golden


def _is_small(shape: torch.Size) -> bool:
    images, _, *sides = shape
    return images <= _MAX_GOLDEN_IMAGES and max(sides) <= MAX_SIDE and 0 < shape.numel() <= _MAX_GOLDEN_VALUES


@torch.inference_mode()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    parameter = next(model.parameters())
    with eval_mode(model):
        return model(inputs.to(device=parameter.device, dtype=parameter.dtype)).float().cpu()


def require_tag(tag: str) -> None:
    """Raise a ValueError if a tag is invalid."""
    if not re.fullmatch(r'[A-Za-z0-9][\w.-]*', tag):
        raise ValueError(f'Invalid tag "{tag}": expected letters, digits, "_", "-" and ".".')


def recipe_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training run that its card and `recipe.json` list."""
    plain = {key: option for key, option in options.items() if isinstance(option, int | float | str)}
    settings = {key: plain[key] for key in MAIN_SETTINGS if key in plain}
    return settings | {key: plain[key] for key in _TECHNIQUES if plain.get(key)}


def write_recipe(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a training run."""
    write_json(folder / RECIPE, settings, version=RECIPE_VERSION)


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the settings of a training run.

    Raises:
        CorruptCheckpointError: If they cannot be read, or their format is unknown.
    """
    try:
        return read_json(folder / RECIPE, version=RECIPE_VERSION)
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f'{folder / RECIPE} cannot be read: {error}.') from error


def fine_tuned_row(
    start: Checkpoint,
    tag: str,
    *,
    num_classes: int,
    input_size: tuple[int, int, int],
    label_names: tuple[str, ...] | None,
    **changed: Any,
) -> Checkpoint:
    """A row for weights that were fine-tuned from those of another row.

    `input_size` is (channels, height, width); `changed` are further fields, such as licence, origin and preprocessing.

    Raises:
        ValueError: If there are more or fewer label names than classes.
    """
    if label_names and len(label_names) != num_classes:
        raise ValueError(f'There are {len(label_names)} label names for {num_classes} classes: name each class once.')
    unknown: dict[str, Any] = dict.fromkeys(('licence', 'origin', 'dataset', 'top1', 'top5', 'evaluation', 'recipe'))
    return replace(
        start,
        name=f'{start.arch}.{tag}',
        sources=(),
        input_size=input_size,
        pool_size=start.pool_size if input_size[1:] == start.input_size[1:] else None,
        num_classes=num_classes,
        label_names=label_names,
        **(unknown | changed),
    )


def write_folder(
    folder: Path,
    model: nn.Module,
    row: Checkpoint,
    *,
    repo_id: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **card: Any,
) -> None:
    """Write weights, config, golden file, recipe and card, and check that they load as the same model.

    The folder is empty, the model in float32 on the CPU. `settings` are from `recipe_settings`, and `card` further
    arguments of `render_card`. The card's examples load from `repo_id`; `ORG/arch.tag` if None.

    Raises:
        UnpublishableError: If the folder does not give the same logits.
    """
    metadata = dict(checkpoint=row.name, licence=row.licence or '', origin=row.origin or '')
    write_model(folder, model, row, metadata=metadata)
    write_golden(folder / GOLDEN, model, golden_inputs(row.input_size), metadata=metadata)
    if settings:
        write_recipe(folder, settings)
    repo_id = repo_id or f'ORG/{row.name}'
    text = render_card(row, repo_id=repo_id, weights=folder / WEIGHTS, settings=settings, **card)
    (folder / CARD).write_text(text, encoding='utf-8')
    require_same_logits(folder)


def require_same_logits(folder: Path) -> None:
    """Load a folder with timm, and compare the logits with its golden file.

    Raises:
        UnpublishableError: If the logits differ by more than rounding.
    """
    try:
        check_golden(timm.create_model(f'local-dir:{folder}', pretrained=True), folder / GOLDEN)
    except MismatchedCheckpointError as error:
        raise UnpublishableError(f'{folder} loads as another model than it was written from. {error}') from error
