"""The machine of a measurement: device, processor, versions. No host name, no path."""

import datetime
import platform
from collections.abc import Sequence

import timm
import torch

from .. import __version__
from ..inference.autotune import processor
from .matrix import GRAPH

_BFLOAT16_INSTRUCTIONS = ('avx512_bf16', 'amx_bf16')


def require_supported(device: torch.device, *, dtype: str, forms: Sequence[str] = ()) -> None:
    """Raise ValueError if the dtype is float16, or a form a CUDA graph, on a CPU."""
    if device.type == 'cuda':
        return
    if dtype == 'float16':
        raise ValueError('float16 is measured on CUDA only: pass bfloat16 on a CPU.')
    for form in forms:
        if form.endswith(GRAPH):
            raise ValueError(f'CUDA graphs need a CUDA GPU, got {form} on {device.type}: omit it, or pass cuda.')


def describe(device: torch.device) -> dict[str, str | int]:
    """The columns that are the same in every row of a run."""
    return {
        'device': device.type,
        'processor': torch.cuda.get_device_name(device) if device.type == 'cuda' else _cpu(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'timm_sk': __version__,
        'python': platform.python_version(),
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _cpu() -> str:
    """The CPU's model name, and its instructions for bfloat16 if they can be known."""
    name, flags = processor()
    if not flags:
        return name
    return '; '.join([name, *(flag if flag in flags else f'no {flag}' for flag in _BFLOAT16_INSTRUCTIONS)])
