"""A training step on a batch in one process, and on a share of it in each of several."""

from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks
from torch import Tensor

from timm_sk.bench.agreement import exact_float32
from timm_sk.distributed import DistributedContext
from timm_sk.finetune.config import Config
from timm_sk.finetune.loop import train_step
from timm_sk.finetune.model import build_model
from timm_sk.finetune.train_state import TrainState, build_train_state

CONFIG = Config(model='sknet_atto.shapes', freeze_bn=True, opt='sgd', lr=0.1, smoothing=0.1, channels_last=False)


def new_state(config: Config = CONFIG, context: DistributedContext | None = None) -> TrainState:
    state = build_train_state(config, build_model(config, 8), context or DistributedContext(), updates_per_epoch=1)
    state.train()
    return state


def make_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)


def step(state: TrainState, images: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return train_step(state, images, targets, **dict(config=CONFIG) | options)[0]


def record_gradients(state: TrainState) -> dict[str, Tensor]:
    """A dictionary that each step fills with the gradients that the optimizer gets."""
    found: dict[str, Tensor] = {}

    def record(*unused: object) -> None:
        found.update((name, p.grad.clone()) for name, p in state.model.named_parameters() if p.grad is not None)

    state.optimizer.register_step_pre_hook(record)
    return found


def loss_and_gradients(
    config: Config, context: DistributedContext, images: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step and the gradients that its optimizer gets, on the CPU."""
    state = new_state(config, context)
    gradients = record_gradients(state)
    with exact_float32():
        loss = step(state, images.to(context.device), targets.to(context.device), config=config)
    return loss.cpu(), {name: gradient.cpu() for name, gradient in gradients.items()}


def run_share(rank: int, device: torch.device, config: Config, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    images, targets = (part.chunk(size)[rank] for part in make_batch())
    return loss_and_gradients(config, DistributedContext(rank=rank, size=size, device=device), images, targets)


def require_ddp_equivalence(folder: Path, *, backend: str, devices: list[str], config: Config, whole: Config) -> None:
    """Check that the loss and the gradients of some processes equal those of one within 1e-5.

    Args:
        folder: Empty folder where the processes meet.
        backend: Backend of torch.distributed.
        devices: Device of each process.
        config: Their settings.
        whole: Settings of the single process, on the first device.
    """
    loss, gradients = loss_and_gradients(whole, DistributedContext(device=torch.device(devices[0])), *make_batch())
    ranks = run_ranks(run_share, folder, config, len(devices), backend=backend, devices=devices)
    losses, found = zip(*ranks, strict=True)
    assert abs(sum(losses).item() / len(devices) - loss.item()) <= 1e-5
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for own in found:
        assert own.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (own[name] - gradient).abs().max().item() <= 1e-5 * max(largest, 1), name
