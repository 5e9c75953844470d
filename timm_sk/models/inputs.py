"""The shape of a model's input, and the preprocessing of its images."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import timm.data
from torch import nn


def image_shape(model: nn.Module, batch_size: int, input_size: Sequence[int] | None) -> list[int]:
    """B, C, H and W of a model's input.

    Args:
        model: The model.
        batch_size: Images in a batch.
        input_size: Channels, height and width; None for `image_size(model)`.

    Raises:
        ValueError: If `input_size` is neither given nor known, or a number is not a positive integer.
    """
    batch_size = _require_positive('batch_size', batch_size)
    if input_size is None:
        input_size = image_size(model)
        if input_size is None:
            raise ValueError(f'{type(model).__name__} has no pretrained_cfg with an input size: pass input_size.')
    if isinstance(input_size, str) or not isinstance(input_size, Sequence) or len(input_size) != 3:
        raise ValueError(f'input_size must be channels, height and width, got {input_size!r}: pass (3, 224, 224).')
    return [batch_size, *(_require_positive('input_size', number) for number in input_size)]


def image_size(model: nn.Module) -> list[int] | None:
    """Channels that a model takes, and height and width of its checkpoint's images; None if no cfg has them."""
    size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
    if size is None:
        return None
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return [first.in_channels if first is not None else size[0], *size[1:]]


def _require_positive(name: str, number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f'{name} must be made of integers of at least 1, got {number!r}.')
    return number


def preprocessing(
    model: Any, *, use_test_size: bool = False, any_channels: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Preprocessing of the model's checkpoint, as timm's validate.py resolves it, for the model's channels.

    Args:
        model: A model of timm.
        use_test_size: Take the checkpoint's test size and crop, if it has them.
        any_channels: Allow other numbers of channels than 1 and 3.
        **overrides: Arguments of `timm.data.resolve_data_config`, which win over the checkpoint's values.

    Raises:
        ValueError: If the model takes images of neither 1 nor 3 channels, unless `any_channels`.
    """
    channels = getattr(model, 'in_chans', 3)
    if channels not in (1, 3) and not any_channels:
        raise ValueError(f'Images have 1 or 3 channels, but the model takes {channels}: create it with in_chans=3.')
    args = dict(overrides, in_chans=channels)
    config = timm.data.resolve_data_config(args, model=model, use_test_size=use_test_size)
    config['input_size'] = (channels, *config['input_size'][1:])
    for name in ('mean', 'std'):
        values = tuple(config[name])
        config[name] = values if len(values) == channels else (fmean(values),) * channels
    return config
