"""Functions that run in one process per rank."""

import datetime
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(seconds=120)


def run_ranks(
    function: Callable[..., Any], folder: Path, *args: object, backend: str = 'gloo', devices: Sequence[str]
) -> list[Any]:
    """Call `function(rank, device, *args)` in a process for each device, and return the values.

    Args:
        function: Function of a module; its value must be loadable by `torch.load` with `weights_only=True`.
        folder: Empty folder where the processes meet.
        *args: Further arguments of the function.
        backend: Backend of torch.distributed.
        devices: Device of each rank.
    """
    context = multiprocessing.get_context('spawn')
    processes = [
        context.Process(
            target=_run_rank, args=(rank, device, len(devices), backend, folder, function, args), daemon=True
        )
        for rank, device in enumerate(devices)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT.total_seconds())
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in range(len(devices))]


def _run_rank(
    rank: int, device: str, size: int, backend: str, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if device != 'cpu':
        torch.cuda.set_device(device)
    init = f'file://{folder}/rendezvous'
    dist.init_process_group(backend, init_method=init, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        torch.save(function(rank, torch.device(device), *args), folder / f'rank{rank}.pt')
    finally:
        dist.destroy_process_group()
