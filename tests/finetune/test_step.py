"""What a step computes: the same for halves in two processes, for parts in turn, and with what is frozen."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import free_port
from torch import Tensor, nn

from timm_sk.finetune.config import Config
from timm_sk.finetune.model import build_model, freeze
from timm_sk.finetune.step import train_step
from timm_sk.finetune.trainee import Trainee, build_trainee
from timm_sk.world import World

CONFIG = Config(model='sknet_atto.shapes', freeze_bn=True, opt='sgd', lr=0.1, smoothing=0.1, channels_last=False)


def trainee_of(config: Config, world: World) -> Trainee:
    trainee = build_trainee(config, build_model(config, 8), world, updates_per_epoch=1)
    trainee.train()
    return trainee


def pictures(count: int = 8) -> tuple[Tensor, Tensor]:
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


def half(rank: int, port: int, folder: str) -> None:
    """Be one of two processes, on half of the pictures."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    trainee = trainee_of(CONFIG, World(rank=rank, size=2))
    gradients = Gradients(trainee)
    images, targets = (part.chunk(2)[rank] for part in pictures())
    loss = step(trainee, images, targets)
    torch.save((loss, gradients.found), Path(folder) / f'{rank}.pt')
    dist.destroy_process_group()


def test_two_halves_equal_the_whole(tmp_path: Path) -> None:
    trainee = trainee_of(CONFIG, World())
    gradients = Gradients(trainee)
    loss = step(trainee, *pictures())

    port = free_port()
    spawning = multiprocessing.get_context('spawn')
    ranks = [spawning.Process(target=half, args=(rank, port, str(tmp_path)), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    losses, found = zip(*(torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2)), strict=True)

    assert abs((losses[0] + losses[1]).item() / 2 - loss.item()) <= 1e-5
    largest = max(gradient.abs().max().item() for gradient in gradients.found.values())
    for mine in found:
        assert mine.keys() == gradients.found.keys()
        for name, gradient in gradients.found.items():
            assert (mine[name] - gradient).abs().max().item() <= 1e-5 * max(largest, 1), name


def test_parts_in_turn_equal_the_whole() -> None:
    whole, parts = trainee_of(CONFIG, World()), trainee_of(CONFIG, World())
    step(whole, *pictures())
    images, targets = pictures()
    before = [parameter.clone() for parameter in parts.model.parameters()]
    step(parts, images[:4], targets[:4], batches=2, is_last=False)
    assert all(map(torch.equal, before, parts.model.parameters()))
    step(parts, images[4:], targets[4:], batches=2)

    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize('start', ['head', 'layer3'])
def test_what_is_frozen_stays(start: str) -> None:
    config = CONFIG.changed(freeze=start, freeze_bn=False)
    trainee = trainee_of(config, World())
    before = {name: tensor.clone() for name, tensor in trainee.model.state_dict().items()}
    step(trainee, *pictures())

    first = 'fc' if start == 'head' else start
    names = [name for name, _ in trainee.model.named_children()]
    frozen = names[: names.index(first)]
    for name, tensor in trainee.model.state_dict().items():
        if name.partition('.')[0] in frozen:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(trainee.model.fc.weight, before['fc.weight'])
    assert isinstance(trainee.model.fc, nn.Linear)


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r'freeze must be "head" or one of conv1, .*, fc, got \'layer9\''):
        freeze(build_model(CONFIG, 8), 'layer9')


def test_clipping_bounds_the_gradients() -> None:
    trainee = trainee_of(CONFIG, World())
    gradients = Gradients(trainee)
    step(trainee, *pictures(), config=CONFIG.changed(clip_grad=0.01))
    norm = torch.stack([gradient.norm() for gradient in gradients.found.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_layers_below_learn_more_slowly() -> None:
    trainee = trainee_of(CONFIG.changed(layer_decay=0.5), World())
    rates = {
        name: group['lr']
        for group in trainee.optimizer.param_groups
        for name, parameter in trainee.model.named_parameters()
        if any(parameter is one for one in group['params'])
    }
    depths = [rates[name] for name, _ in trainee.model.named_parameters()]
    assert depths == sorted(depths)
    assert depths[0] < 0.5 * depths[-1]


def test_averaged_weights_follow() -> None:
    trainee = trainee_of(CONFIG.changed(model_ema=True, model_ema_decay=0.9), World())
    begin = trainee.model.fc.weight.detach().clone()
    step(trainee, *pictures(), updates=5)
    now, averaged = trainee.model.fc.weight.detach(), trainee.judged.fc.weight
    share = ((averaged - begin).norm() / (now - begin).norm()).item()
    assert 0 < share < 1


def test_sync_bn_on_a_cpu_says_so() -> None:
    with pytest.raises(ValueError, match='--sync-bn needs CUDA'):
        trainee_of(CONFIG.changed(sync_bn=True), World())
