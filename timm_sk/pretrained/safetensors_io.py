"""Write safetensors files atomically."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..atomic_io import atomic_write
from .readers.stream import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whose keys keep the mapping's order, which `safetensors` itself would sort.

    The file gets the permissions of any new file, and appears whole or not at all, even if the power fails.

    Args:
        tensors: What to write, on any device; types as in a state dict.
        path: The file; an existing one is replaced.
        metadata: Strings for the header.
    """
    header: dict[str, object] = {'__metadata__': dict(metadata)} if metadata else {}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = dict(dtype=_DTYPE_NAMES[tensor.dtype], shape=list(tensor.shape), data_offsets=[begin, end])
    encoded = json.dumps(header, separators=(',', ':')).encode()
    encoded += b' ' * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack('<Q', len(encoded)) + encoded)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
