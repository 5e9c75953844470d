"""Devices by name."""

from collections.abc import Sequence

import torch


def open_device(name: torch.device | str | None = None, types: Sequence[str] = ('cpu', 'cuda', 'mps')) -> torch.device:
    """Return the device of a name, if this machine has it.

    Args:
        name: `cpu`, `cuda`, `cuda:<index>` or `mps`; None for the best device of this machine: cuda, then mps, then
            cpu.
        types: Types of device that the caller supports.

    Raises:
        ValueError: If the name is invalid, or this machine does not have the device.
    """
    available = {'cuda': torch.cuda.device_count(), 'mps': int(torch.backends.mps.is_available()), 'cpu': 1}
    if name is None:
        return torch.device(next(kind for kind, count in available.items() if count and kind in types))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'Invalid device "{name}": expected {_listed(types)}') from error
    if device.type not in types:
        raise ValueError(f'Invalid device "{name}": expected {_listed(types)}')
    if (device.index or 0) >= available[device.type]:
        raise ValueError(f'Device "{name}" not found: this machine has {available["cuda"]} CUDA GPUs')
    return device


def _listed(types: Sequence[str]) -> str:
    *names, last = [name for kind in types for name in ((kind, 'cuda:<index>') if kind == 'cuda' else (kind,))]
    return f'{", ".join(names)} or {last}'
