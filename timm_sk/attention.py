"""The attention weights of every unit of a model for a batch of images."""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .layers import LargeSelectiveKernel, SelectiveKernel, SplitAttention
from .models.modes import eval_mode
from .ops.reference import gate_weights

Unit = SelectiveKernel | SplitAttention | LargeSelectiveKernel
_KINDS = {SelectiveKernel: 'SK', SplitAttention: 'SA', LargeSelectiveKernel: 'LSK'}


@dataclass(frozen=True)
class UnitWeights:
    """The attention weights of one selective-kernel unit or split attention.

    Attributes:
        name: Name by the paper's numbering: SK_2_3 is the third unit of the first stage, `layer1.2`; the stem counts
            as 1. A split attention in that place is SA_2_3. LSKNet has no stem: LSK_1_3 is in its first stage.
        path: Path of the unit's module in the model.
        weights: [B, M, C], summing to 1 over M; of a split attention with one branch, the sigmoid. Of LSKNet, which
            weighs positions, maps [B, M, H, W] between 0 and 1. Detached, on the model's device.
        kernel_extents: Extent of each branch's kernel, in pixels of the unit's input.
        contributions: L2 norm over the channels of each branch's weighted output, [B, M, H, W] in the output's
            resolution; None unless they are recorded.
    """

    name: str
    path: str
    weights: Tensor
    kernel_extents: tuple[int, ...]
    contributions: Tensor | None = None


def attention_weights(model: nn.Module, x: Tensor) -> list[UnitWeights]:
    """Run images through a model and return the weights of all its units, in the order in which they ran.

    The model runs in eval mode, so its statistics stay; afterwards every module is in its former mode.

    Args:
        model: A model with `SelectiveKernel`, `SplitAttention` or `LargeSelectiveKernel` units.
        x: Images [B, in_chans, H, W].

    Raises:
        ValueError: If the model has no unit with attention.
    """
    with eval_mode(model), record_attention(model) as units, torch.no_grad():
        model(x)
    return units


@contextmanager
def record_attention(model: nn.Module, *, contributions: bool = False) -> Iterator[list[UnitWeights]]:
    """Record the weights of every unit in the forward passes inside the context, in the model's own mode.

    Args:
        model: Model with units that have attention.
        contributions: Also record the contributions of the branches, for which each unit's branches run twice; in eval
            mode, since the statistics of norms in train mode would be updated twice.

    Yields:
        A list that grows by one `UnitWeights` whenever a unit runs.

    Raises:
        ValueError: If the model has no unit with attention.
    """
    recorded: list[UnitWeights] = []
    last: dict[nn.Module, Tensor] = {}  # outputs of the layers of the logits

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        last[layer] = out.detach()

    def record(path: str, unit: Unit, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        logits = last.pop(_logits_layer(unit))[: len(out)]  # Lucid's attend to a single image twice in train mode
        weights = _weights(unit, logits)
        norms = _contributions(unit.split(inputs[0]), weights) if contributions else None
        recorded.append(UnitWeights(unit_name(path, unit), path, weights, kernel_extents(unit), norms))

    with ExitStack() as hooks:
        for path, unit in selecting_units(model):
            hooks.enter_context(_logits_layer(unit).register_forward_hook(keep))
            hooks.enter_context(unit.register_forward_hook(partial(record, path)))
        yield recorded


def selecting_units(model: nn.Module) -> list[tuple[str, Unit]]:
    """The units of a model that have attention, with their paths; raises ValueError if it has none."""
    units = [
        (path, unit)
        for path, unit in model.named_modules()
        if isinstance(unit, Unit) and getattr(unit, 'attn', unit) is not None
    ]
    if not units:
        raise ValueError(
            f'{type(model).__name__} has no unit that selects: use a selective-kernel model with attention.'
        )
    return units


def _logits_layer(unit: Unit) -> nn.Module:
    """The module whose output is a unit's logits, apart from their order."""
    if isinstance(unit, LargeSelectiveKernel):
        return unit.conv_squeeze
    return unit.fc2 if isinstance(unit, SplitAttention) else unit.get_submodule('attn')


def _weights(unit: Unit, logits: Tensor) -> Tensor:
    if isinstance(unit, SplitAttention):
        return gate_weights(unit.by_branch(logits.flatten(1)), unit.gate)
    return logits.sigmoid() if isinstance(unit, LargeSelectiveKernel) else gate_weights(logits, 'softmax')


def _contributions(branches: Iterable[Tensor], weights: Tensor) -> Tensor:
    """L2 norm over the channels of each weighted branch: M x [B, C, H, W] -> [B, M, H, W]."""
    gates = weights[:, :, None] if weights.dim() == 4 else weights[..., None, None]  # [B, M, 1, H, W], [B, M, C, 1, 1]
    return torch.stack([(x * gates[:, m]).float().norm(dim=1) for m, x in enumerate(branches)], dim=1).detach()


def unit_name(path: str, unit: nn.Module | None = None) -> str:
    """The paper's name of a unit from its module's path, or the path where it has no stage and block.

    `layer1.2.conv2` (timm's ResNet) and `stage2.2.branch2.sk` (torchvision's ShuffleNetV2) are SK_2_3, `blocks.1.0`
    (timm's MobileNetV2) is SK_2_1, `block1.0` (LSKNet) is LSK_1_1; the second unit of a block has a suffix. Wrappers
    around the model, such as that of `timm_sk.deploy`, are skipped.
    """
    match = re.match(r'(?:(?:model|module|_orig_mod)\.)*(layer|stage|blocks\.|block)(\d+)\.(\d+)\.?(branch1)?', path)
    if match is None:
        return path
    trunk, stage, block, shortcut = match.groups()
    kind = next((kind for cls, kind in _KINDS.items() if isinstance(unit, cls)), 'SK')
    number = int(stage) + (0 if trunk in ('stage', 'block') else 1)
    return f'{kind}_{number}_{int(block) + 1}' + ('_shortcut' if shortcut else '')


def kernel_extents(unit: Unit) -> tuple[int, ...]:
    """The receptive field of each branch, in pixels of the unit's input.

    A kernel of size k with dilation d has an extent of d * (k - 1) + 1; stacked convolutions have a larger one. Where
    height and width differ, the larger counts. Norms may be folded.
    """
    if isinstance(unit, SplitAttention):
        return (_extent(unit.conv),) * unit.radix
    if isinstance(unit, LargeSelectiveKernel):  # whose second branch continues the first
        return _extent(unit.conv0), _extent(nn.Sequential(unit.conv0, unit.conv_spatial))
    return tuple(map(_extent, unit.paths))


def _extent(branch: nn.Module) -> int:
    extent, step = 1, 1  # step: pixels of the branch's input between neighbouring inputs of the next convolution
    for conv in branch.modules():
        if isinstance(conv, nn.Conv2d):
            pairs = zip(conv.kernel_size, conv.dilation, strict=True)
            extent += step * max(dilation * (size - 1) for size, dilation in pairs)
            step *= max(conv.stride)
    return extent
