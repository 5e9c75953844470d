"""The entry points that `hubconf.py` offers to torch.hub."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import registry
from .factory import ready_model, transforms


def hub_entrypoints() -> dict[str, Callable[..., Any]]:
    """The entry points by name: one for each architecture, and `transforms`."""
    return {**{arch: _make_entrypoint(arch) for arch in registry.architectures()}, 'transforms': transforms}


def _make_entrypoint(arch: str) -> Callable[..., nn.Module]:
    def entrypoint(
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
    entrypoint.__name__ = entrypoint.__qualname__ = arch
    entrypoint.__doc__ = f"""{summary}

    The model is in eval mode and on its device; on CUDA its kernels are compiled.

    Args:
        pretrained: Load weights. Tags with weights: {tags or 'none, so pass `pretrained=False`'}.
        tag: Tag of the checkpoint; None for the first of these tags.
        device: Device of the model; None for the best device of this machine: cuda, then mps, then cpu.
        dtype: Floating-point type, such as `torch.bfloat16`; None for float32.
        channels_last: Memory format of the weights; None for channels last on cuda and contiguous elsewhere.
        **kwargs: Further arguments of `timm.create_model`: `num_classes` (if it differs from the
            checkpoint's, the classifier is new and untrained), `in_chans`, `features_only`, ...

    Raises:
        ValueError: If the checkpoint has no weights, or this machine does not have the device.
    """
    return entrypoint
