"""Checks of values that were read from a file, before anything uses them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MAX_INT = 2**63  # of torch


def require_like(found: Any, expected: Any, name: str = '') -> None:
    """Check that a value has the types, keys, lengths, shapes and dtypes of another; numbers and strings may differ.

    An `int` is accepted for a `float`; None is not.

    Raises:
        ValueError: If it has another structure, or a number that is not finite where the other has a finite one; names
            the first such entry.
    """
    if not (isinstance(expected, float) and type(found) is int) and describe(found) != describe(expected):
        raise ValueError(f'{name or "the content"} is {describe(found)}, expected {describe(expected)}')
    if _is_finite(expected) and not _is_finite(found):
        raise ValueError(f'{name or "the content"} has NaN, infinite or too large values')
    if isinstance(expected, Mapping):
        if others := sorted(map(repr, found.keys() ^ expected.keys())):
            raise ValueError(f'{name or "the content"} has other entries than expected: {", ".join(others[:3])}')
        for key, value in expected.items():
            require_like(found[key], value, f'{name}.{key}' if name else str(key))
    elif isinstance(expected, list | tuple):
        for index, (item, value) in enumerate(zip(found, expected, strict=True)):
            require_like(item, value, f'{name}[{index}]')


def describe(value: Any) -> str:
    """What `require_like` compares of a value, without its entries."""
    if isinstance(value, Tensor):
        return f'a tensor {list(value.shape)} of {value.dtype}'
    if isinstance(value, Mapping):
        return 'a mapping'
    kind = f'of type {type(value).__name__}'
    return f'{kind} and length {len(value)}' if isinstance(value, list | tuple) else kind


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return abs(value) < _MAX_INT if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)
