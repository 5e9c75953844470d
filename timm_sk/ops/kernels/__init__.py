"""Triton kernels, a file each. Nothing here is imported before `available` has said yes.

Importing a kernel's file imports triton, and registers its operators with torch.
"""

import importlib.util
import os

import torch

__all__ = ['available', 'interpreted']


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def available(device: torch.device) -> bool:
    """Whether kernels can run on tensors of a device."""
    runs = device.type == 'cuda' or (device.type == 'cpu' and interpreted())
    return runs and importlib.util.find_spec('triton') is not None
