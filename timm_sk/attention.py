"""Selection made visible: the attention weights that every unit of a model gives to a batch of pictures."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .layers import SelectiveKernel


@dataclass(frozen=True)
class UnitWeights:
    """What one selective-kernel unit weighed its branches with.

    Attributes:
        name: As the paper numbers: SK_2_3 is the third unit of the first stage, `layer1.2`; the stem counts as 1.
        path: Path of the unit's module in the model.
        weights: [B, M, C], summing to 1 over M; detached, on the model's device.
    """

    name: str
    path: str
    weights: Tensor


def attention_weights(model: nn.Module, x: Tensor) -> list[UnitWeights]:
    """Run pictures through a model and return the weights of all its units, in the order in which they ran.

    They run in eval mode, so that no statistics move; afterwards every module is in the mode that it was in.

    Args:
        model: A model with `SelectiveKernel` units.
        x: Pictures [B, in_chans, H, W].

    Raises:
        ValueError: If the model has no unit with attention.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with record_attention(model.eval()) as units, torch.no_grad():
            model(x)
    finally:
        for module, training in modes:
            module.training = training
    return units


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[UnitWeights]]:
    """Record the weights of every unit in the forward passes inside the context, in whatever mode the model is.

    Outputs are not touched.

    Yields:
        A list that grows by one `UnitWeights` whenever a unit runs.

    Raises:
        ValueError: If the model has no unit with attention.
    """
    units = [
        (path, unit, unit.attn)
        for path, unit in model.named_modules()
        if isinstance(unit, SelectiveKernel) and unit.attn is not None
    ]
    if not units:
        raise ValueError(
            f'{type(model).__name__} has no unit that selects: use a selective-kernel model with attention.'
        )
    recorded: list[UnitWeights] = []
    with ExitStack() as hooks:
        for path, unit, attn in units:
            hooks.callback(attn.register_forward_hook(partial(_record, recorded, path, unit)).remove)
        yield recorded


def _record(
    recorded: list[UnitWeights], path: str, unit: SelectiveKernel, _: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
) -> None:
    weights = out.detach().softmax(dim=1).expand(-1, -1, unit.out_channels)  # [B, M, C]
    recorded.append(UnitWeights(name=unit_name(path), path=path, weights=weights))


def unit_name(path: str) -> str:
    """The paper's name of a unit from its module's path, or the path where it has no stage and block.

    `layer1.2.conv2` (timm's ResNet) and `stage2.2.branch2.sk` (torchvision's ShuffleNetV2) are SK_2_3, `blocks.1.0`
    (timm's MobileNetV2) is SK_2_1; what comes after the block is kept where a block has several units.
    """
    match = re.match(r'(layer|stage|blocks\.)(\d+)\.(\d+)\.?(branch1)?', path)
    if match is None:
        return path
    trunk, stage, block, shortcut = match.groups()
    number = int(stage) + (0 if trunk == 'stage' else 1)
    return f'SK_{number}_{int(block) + 1}' + ('_shortcut' if shortcut else '')
