"""The entry points that `hubconf.py` offers to torch.hub."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import registry
from .factory import ready_model, transforms


def hub_entrypoints() -> dict[str, Callable[..., Any]]:
    """The doors of `torch.hub`: one for each architecture, and `transforms`."""
    doors: dict[str, Callable[..., Any]] = {arch: _make_door(arch) for arch in registry.architectures()}
    doors['transforms'] = transforms
    return doors


def _make_door(arch: str) -> Callable[..., nn.Module]:
    def door(
        pretrained: bool = True,
        *,
        tag: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if not isinstance(pretrained, bool):
            raise ValueError(f'pretrained must be True or False, got {pretrained!r}: name a checkpoint as tag=...')
        name = f'{arch}.{tag}' if tag else arch
        return ready_model(name, pretrained, device=device, dtype=dtype, channels_last=channels_last, **kwargs)

    summary = (registry.architectures()[arch].__doc__ or '').strip()
    tags = ', '.join(registry.tags_with_weights(arch))
    door.__name__ = door.__qualname__ = arch
    door.__doc__ = f"""{summary}

    The model comes in eval mode, on the device, ready to call; on CUDA its kernels are compiled.

    Args:
        pretrained: Load weights. Tags with weights: {tags or 'none, so pass `pretrained=False`'}.
        tag: The checkpoint; None for the first of these tags.
        device: Where to put it; None for the best device of this machine: cuda, then mps, then cpu.
        dtype: Floating-point type, such as `torch.bfloat16`; None for float32.
        channels_last: Memory format of the weights; None for channels last on cuda and contiguous elsewhere.
        **kwargs: Further arguments of `timm.create_model`: `num_classes` (another number than the checkpoint's gets
            a new, untrained classifier), `in_chans`, `features_only`, ...

    Raises:
        ValueError: If there are no weights, or this machine does not have the device.
    """
    return door
