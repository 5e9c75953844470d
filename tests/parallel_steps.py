"""Training steps of our net and of timm's in two processes, with their parameters in shards or whole."""

import datetime
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from timm_pair import images, pair
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import timm_sk  # noqa: F401  (registers the models, also in the processes of other ranks)

PATIENCE = datetime.timedelta(seconds=120)


def parallelize(model: nn.Module, kind: str) -> nn.Module:
    if kind == 'ddp':
        return DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)
    mesh = init_device_mesh('cpu', (2,))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def steps(model: nn.Module, rank: int, kind: str) -> dict[str, Tensor]:
    """Three steps on a rank's own images: outputs, and the state dict in whole tensors."""
    parallel = parallelize(model, kind)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01, momentum=0.9)
    found = {}
    for step in range(3):  # DDP learns the graph in the first
        output = parallel(images(seed=10 * step + rank))
        output.sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found[f'output {step}'] = output.detach()
    state = {key.removeprefix('module.'): tensor for key, tensor in parallel.state_dict().items()}
    return found | {k: t.full_tensor() if isinstance(t, DTensor) else t.clone() for k, t in state.items()}


def run_rank(rank: int, name: str, kind: str, training: bool, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f'file://{folder}/rendezvous'
    dist.init_process_group('gloo', init_method=meeting, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        found = [steps(model, rank, kind) for model in pair(name, training=training)]
        torch.save(found, Path(folder) / f'rank{rank}.pt')
    finally:
        dist.destroy_process_group()


def run_ranks(name: str, kind: str, training: bool, folder: Path) -> list[list[dict[str, Tensor]]]:
    """What each rank has: of our net, and of timm's."""
    spawning = multiprocessing.get_context('spawn')
    arguments = (name, kind, training, str(folder))
    ranks = [spawning.Process(target=run_rank, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE.total_seconds())
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in range(2)]
