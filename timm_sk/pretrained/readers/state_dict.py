"""Find the state dict in what a training script saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .stream import FormatError, quote, shorten

_WRAPPERS = ('state_dict', 'model')
_AVERAGED = ('state_dict_ema', 'model_ema')  # as timm's train.py has called them
_MAX_WRAPPERS = 3
_PARALLEL = 'module.'  # the prefix of nn.DataParallel


def unwrap(loaded: Any, *, use_ema: bool = False) -> dict[str, Tensor]:
    """Take the state dict out of {'state_dict': …} or {'model': …}, and drop the other entries.

    Of {'resnet': …, 'head': …}, it takes both, the second one under the prefix `head.`.

    With `use_ema`, it takes the averaged weights that timm's train.py saves beside the others, if there are any.

    Returns:
        Dense, contiguous, finite tensors in the file's order, without the prefix `module.` if all keys have it.
    """
    wrappers = (*_AVERAGED, *_WRAPPERS) if use_ema else _WRAPPERS
    for _ in range(_MAX_WRAPPERS):
        if isinstance(loaded, Mapping):
            loaded = next((loaded[key] for key in wrappers if isinstance(loaded.get(key), Mapping)), loaded)
    if isinstance(loaded, Mapping) and isinstance(loaded.get('resnet'), Mapping):  # of the PyTorch port of SimCLRv2
        head = loaded['head'] if isinstance(loaded.get('head'), Mapping) else {}
        loaded = {**loaded['resnet'], **{f'head.{key}': value for key, value in head.items()}}
    if not isinstance(loaded, Mapping) or not loaded:
        raise FormatError(f'it holds {_describe(loaded)}, not a state dict', 'Save the state dict of its model.')
    others = [
        f'{quote(key)} ({_describe(value)})'
        for key, value in loaded.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        raise FormatError(
            f'its state dict holds other things than dense tensors: {shorten(others)}',
            'Save only the state dict of its model.',
        )
    for key, value in loaded.items():
        if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, torch.aminmax(value))):
            raise FormatError(f'{quote(key)} has NaN or infinite values', 'Use a checkpoint from before they appeared.')
    parallel = all(key.startswith(_PARALLEL) and key != _PARALLEL for key in loaded)
    return {key.removeprefix(_PARALLEL) if parallel else key: value.contiguous() for key, value in loaded.items()}


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'a tensor of {value.dtype}'
    if isinstance(value, Mapping):
        return f'a mapping of {len(value)}'
    return f'a {type(value).__name__}'
