"""A model as a folder that timm (`hf-hub:`, `local-dir:`) and transformers (`AutoModelForImageClassification`) load.

`model.safetensors`, `config.json`, `golden.safetensors` (a batch and what the model answers) and what the card adds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoints import Checkpoint
from .errors import CorruptCheckpointError
from .pretrained import hub_config, save_safetensors

WEIGHTS, CONFIG, GOLDEN, CARD, RECIPE = (
    'model.safetensors',
    'config.json',
    'golden.safetensors',
    'README.md',
    'recipe.json',
)
GOLDEN_PICTURES = 2
GOLDEN_TOLERANCE = 1e-4  # of the largest logit; kernels of different machines agree to about 1e-6


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
    return hub_config(row, **of_model, **(dict(global_pool=pooling) if pooling else {}))


def golden_inputs(input_size: tuple[int, int, int]) -> Tensor:
    """The same normalised noise wherever it is drawn, [2, C, H, W]."""
    return torch.randn(GOLDEN_PICTURES, *input_size, generator=torch.Generator().manual_seed(0))


def write_golden(path: Path, model: nn.Module, inputs: Tensor, *, metadata: Mapping[str, str]) -> None:
    """Write a batch [N, C, H, W] and the model's logits [N, K], both in float32."""
    tensors = dict(inputs=inputs, logits=_logits(model, inputs))
    save_safetensors(tensors, path, metadata=dict(format='pt', **metadata))


def check_golden(model: nn.Module, path: Path) -> float:
    """The largest difference between a model's logits and those that a golden file holds.

    Args:
        model: On any device, in any mode; it is judged in eval mode and left as it was.
        path: What `write_golden` wrote.

    Raises:
        CorruptCheckpointError: If the file is no golden file of a model of this shape.
    """
    golden = read_golden(path)
    logits = _logits(model, golden['inputs'])
    if logits.shape != golden['logits'].shape:
        shapes = f'logits {list(golden["logits"].shape)}, the model gives {list(logits.shape)}'
        raise CorruptCheckpointError(f'{path} is of another model: it has {shapes}.')
    return float((logits - golden['logits']).abs().max())


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
    return golden


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    parameter, was_training = next(model.parameters()), model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(inputs.to(device=parameter.device, dtype=parameter.dtype)).float().cpu()
    finally:
        model.train(was_training)
