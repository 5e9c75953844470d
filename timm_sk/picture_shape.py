"""Of which shape a model's input is: what a caller says, checked, or what the model's checkpoint says."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def picture_shape(model: nn.Module, batch_size: int, input_size: Sequence[int] | None) -> list[int]:
    """B, C, H and W of a model's input.

    Args:
        model: The model.
        batch_size: Pictures in a batch.
        input_size: Channels, height and width; None for those of the model's checkpoint with the channels that the
            model has.

    Raises:
        ValueError: If the numbers are no positive integers, not three, or neither given nor known.
    """
    batch_size = _require_positive('batch_size', batch_size)
    if input_size is None:
        input_size = picture_size(model)
        if input_size is None:
            raise ValueError(f'{type(model).__name__} has no pretrained_cfg with an input size: pass input_size.')
    if isinstance(input_size, str) or not isinstance(input_size, Sequence) or len(input_size) != 3:
        raise ValueError(f'input_size must be channels, height and width, got {input_size!r}: pass (3, 224, 224).')
    return [batch_size, *(_require_positive('input_size', number) for number in input_size)]


def picture_size(model: nn.Module) -> list[int] | None:
    """Channels, height and width of a model's pictures: its checkpoint's, with the channels that the model takes.

    None if it has no `pretrained_cfg` that says so.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    size = cfg.get('input_size')
    if size is None:
        return None
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return [first.in_channels if first is not None else size[0], *size[1:]]


def _require_positive(name: str, number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f'{name} must be made of integers of at least 1, got {number!r}.')
    return number
