"""Triton kernels, a file each. Importing this imports no Triton; `load` does, and registers a file's operators."""

import importlib
import os

import torch

__all__ = ['available', 'interpreted', 'load']


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def available(device: torch.device) -> bool:
    """Whether kernels run on tensors of a device, if Triton is installed."""
    return device.type == 'cuda' or (device.type == 'cpu' and interpreted())


def load(name: str) -> bool:
    """Import a file of kernels, which registers its operators with torch; False where there is no working Triton."""
    try:
        importlib.import_module(f'{__name__}.{name}')
    except ImportError:
        return False
    return True
