"""A step of fine-tuning on images in one process, and on half of them in each of two."""

import datetime
import multiprocessing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from timm_sk.bench.agreement import exact_float32
from timm_sk.distributed import DistributedContext
from timm_sk.finetune.config import Config
from timm_sk.finetune.loop import train_step
from timm_sk.finetune.model import build_model
from timm_sk.finetune.train_state import Trainee, build_trainee

PATIENCE = datetime.timedelta(seconds=100)
CONFIG = Config(model='sknet_atto.shapes', freeze_bn=True, opt='sgd', lr=0.1, smoothing=0.1, channels_last=False)


def trainee_of(config: Config, context: DistributedContext) -> Trainee:
    trainee = build_trainee(config, build_model(config, 8), context, updates_per_epoch=1)
    trainee.train()
    return trainee


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 8


def step(trainee: Trainee, images: Tensor, targets: Tensor, **changes: Any) -> Tensor:
    settings: dict[str, Any] = dict(config=CONFIG, batches=1, is_last=True, updates=0)
    return train_step(trainee, images, targets, **settings | changes)[0]


class Gradients:
    """Gradients as the optimizer sees them."""

    def __init__(self, trainee: Trainee) -> None:
        self.found: dict[str, Tensor] = {}
        self.trainee = trainee
        trainee.optimizer.register_step_pre_hook(self._note)

    def _note(self, *unused: object) -> None:
        named = self.trainee.model.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def run_half(rank: int, backend: str, devices: list[str], config: Config, folder: str) -> None:
    """Be one of two processes: take a step on half of the images, and save the loss and the gradients."""
    torch.set_num_threads(1)
    device = torch.device(devices[rank])
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    meeting = f'file://{folder}/rendezvous'
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        images, targets = (part.chunk(2)[rank] for part in batch())
        found = loss_and_gradients(config, DistributedContext(rank=rank, size=2, device=device), images, targets)
        torch.save(found, Path(folder) / f'{rank}.pt')
    finally:
        dist.destroy_process_group()


def loss_and_gradients(
    config: Config, context: DistributedContext, images: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step and the gradients that its optimizer sees, on the CPU."""
    trainee = trainee_of(config, context)
    gradients = Gradients(trainee)
    with exact_float32():
        loss = step(trainee, images.to(context.device), targets.to(context.device), config=config)
    return loss.detach().cpu(), {name: gradient.cpu() for name, gradient in gradients.found.items()}


def require_halves_equal_the_whole(
    folder: Path, *, backend: str, devices: list[str], config: Config, whole: Config
) -> None:
    """Check that the loss and the gradients of two processes are those of one within 1e-5.

    Args:
        folder: An empty one, where the processes meet.
        backend: Of torch.distributed.
        devices: Of both processes.
        config: The settings of both.
        whole: Those of the one, on the first device.
    """
    loss, gradients = loss_and_gradients(whole, DistributedContext(device=torch.device(devices[0])), *batch())
    spawning = multiprocessing.get_context('spawn')
    ranks = [
        spawning.Process(target=run_half, args=(rank, backend, devices, config, str(folder)), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE.total_seconds())
    losses, found = zip(*(torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)), strict=True)

    assert abs((losses[0] + losses[1]).item() / 2 - loss.item()) <= 1e-5
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for mine in found:
        assert mine.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (mine[name] - gradient).abs().max().item() <= 1e-5 * max(largest, 1), name
