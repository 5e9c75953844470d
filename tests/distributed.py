"""Gradients of a step of distributed data-parallel training."""

import timm
import torch
import torch.nn.functional as F
from random_weights import fill_model, make_input
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import timm_sk  # noqa: F401  (registers the models, also in the processes of other ranks)
from timm_sk.bench.agreement import exact_float32

SHARE = 4  # images of a rank


def net() -> nn.Module:
    """The net that is trained, in float64, so that every order of summation gives the same gradients."""
    return fill_model(timm.create_model('sknet_atto')).double().train()


def gradients(model: nn.Module, rank: int) -> dict[str, Tensor]:
    """Gradients of the loss on a rank's share of the images, on the CPU."""
    weight = next(model.parameters())
    images = make_input((SHARE, 3, 32, 32), seed=rank).to(weight)
    labels = (torch.arange(SHARE) + rank).to(weight.device)
    F.cross_entropy(model(images), labels).backward()
    found = {name.removeprefix('module.'): p.grad for name, p in model.named_parameters()}
    return {name: gradient.cpu().double() for name, gradient in found.items() if gradient is not None}


def run_rank(rank: int, device: torch.device) -> dict[str, Tensor]:
    model = net()
    if device.type == 'cuda':  # nccl does not support float64
        model = model.to(device, torch.float32)
    parallel = DistributedDataParallel(model, device_ids=[device] if device.type == 'cuda' else None)
    with exact_float32():
        return gradients(parallel, rank)


def averaged(world: int) -> dict[str, Tensor]:
    """The expected gradients: the mean over the ranks' shares, in one process."""
    shares = [gradients(net(), rank) for rank in range(world)]
    return {name: torch.stack([share[name] for share in shares]).mean(0) for name in shares[0]}
