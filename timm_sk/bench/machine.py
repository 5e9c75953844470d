"""On what a measurement was made: device, processor, versions. No host name, no path."""

import datetime
import platform
from collections.abc import Sequence

import timm
import torch

from .. import __version__
from ..inference.autotune import processor
from .matrix import GRAPH

_INSTRUCTIONS = ('avx512_bf16', 'amx_bf16')


def require_dtype(dtype: str, device: torch.device) -> None:
    """Check that a dtype is measured on a device.

    Raises:
        ValueError: If it is float16 on a CPU.
    """
    if dtype == 'float16' and device.type == 'cpu':
        raise ValueError('float16 is measured on CUDA alone: on a CPU take bfloat16.')


def require_forms(forms: Sequence[str], device: torch.device) -> None:
    """Check that forms are measured on a device.

    Raises:
        ValueError: If one is a CUDA graph and the device is no CUDA GPU.
    """
    graphs = [form for form in forms if form.endswith(GRAPH)]
    if graphs and device.type != 'cuda':
        raise ValueError(f'CUDA graphs need a CUDA GPU, got {graphs[0]} on {device.type}: omit it, or name cuda.')


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
    """The CPU's model name, and which instructions for bfloat16 it has where that can be known."""
    name, flags = processor()
    if not flags:
        return name
    return '; '.join([name, *(flag if flag in flags else f'no {flag}' for flag in _INSTRUCTIONS)])
