"""A step of distributed data-parallel training, in as many processes of one machine as there are ranks."""

import datetime
import multiprocessing
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from random_weights import fill_model, make_input
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import timm_sk  # noqa: F401  (registers the models, also in the processes of other ranks)
from timm_sk.bench.agreement import exact_float32

SHARE = 4  # pictures of a rank
PATIENCE = datetime.timedelta(seconds=120)


def net() -> nn.Module:
    """The net that is trained, in float64, so that every order of summation gives the same gradients."""
    return fill_model(timm.create_model('sknet_atto')).double().train()


def gradients(model: nn.Module, rank: int) -> dict[str, Tensor]:
    """Gradients of the loss on a rank's share of the pictures, on the CPU."""
    weight = next(model.parameters())
    pictures = make_input((SHARE, 3, 32, 32), seed=rank).to(weight)
    labels = (torch.arange(SHARE) + rank).to(weight.device)
    F.cross_entropy(model(pictures), labels).backward()
    found = {name.removeprefix('module.'): p.grad for name, p in model.named_parameters()}
    return {name: gradient.cpu().double() for name, gradient in found.items() if gradient is not None}


def run_rank(rank: int, world: int, backend: str, folder: str) -> None:
    """Be one rank: take a step's gradients, and save them into the folder."""
    torch.set_num_threads(1)
    model = net()
    on_gpus = backend == 'nccl'
    if on_gpus:  # whose kernels take no float64
        torch.cuda.set_device(rank)
        model = model.to(f'cuda:{rank}', torch.float32)
    meeting = f'file://{folder}/rendezvous'
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        parallel = DistributedDataParallel(model, device_ids=[rank] if on_gpus else None)
        with exact_float32():
            torch.save(gradients(parallel, rank), Path(folder) / f'rank{rank}.pt')
    finally:
        dist.destroy_process_group()


def run_ranks(world: int, backend: str, folder: Path) -> list[dict[str, Tensor]]:
    """Run all ranks, the first in this process, and return the gradients that each has."""
    spawning = multiprocessing.get_context('spawn')
    others = [
        spawning.Process(target=run_rank, args=(rank, world, backend, str(folder)), daemon=True)
        for rank in range(1, world)
    ]
    for process in others:
        process.start()
    run_rank(0, world, backend, str(folder))
    for process in others:
        process.join()
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in range(world)]


def averaged(world: int) -> dict[str, Tensor]:
    """What the ranks should have: the mean of the gradients that their shares give in one process."""
    shares = [gradients(net(), rank) for rank in range(world)]
    return {name: torch.stack([share[name] for share in shares]).mean(0) for name in shares[0]}
