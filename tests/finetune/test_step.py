"""What a step computes: the same for halves in two processes, for parts in turn, and with what is frozen."""

from pathlib import Path

import pytest
import torch
from ddp_equivalence import CONFIG, Gradients, batch, require_halves_equal_the_whole, step, trainee_of
from torch import nn

from timm_sk.distributed import DistributedContext
from timm_sk.finetune.model import build_model, freeze


@pytest.mark.deep
def test_two_halves_equal_the_whole(tmp_path: Path) -> None:
    require_halves_equal_the_whole(tmp_path, backend='gloo', devices=['cpu'] * 2, config=CONFIG, whole=CONFIG)


def test_parts_in_turn_equal_the_whole() -> None:
    whole, parts = trainee_of(CONFIG, DistributedContext()), trainee_of(CONFIG, DistributedContext())
    step(whole, *batch())
    images, targets = batch()
    before = [parameter.clone() for parameter in parts.model.parameters()]
    step(parts, images[:4], targets[:4], batches=2, is_last=False)
    assert all(map(torch.equal, before, parts.model.parameters()))
    step(parts, images[4:], targets[4:], batches=2)

    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize('start', ['head', 'layer3'])
def test_what_is_frozen_stays(start: str) -> None:
    config = CONFIG.changed(freeze=start, freeze_bn=False)
    trainee = trainee_of(config, DistributedContext())
    before = {name: tensor.clone() for name, tensor in trainee.model.state_dict().items()}
    step(trainee, *batch())

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
    trainee = trainee_of(CONFIG, DistributedContext())
    gradients = Gradients(trainee)
    step(trainee, *batch(), config=CONFIG.changed(clip_grad=0.01))
    norm = torch.stack([gradient.norm() for gradient in gradients.found.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_layers_below_learn_more_slowly() -> None:
    trainee = trainee_of(CONFIG.changed(layer_decay=0.5), DistributedContext())
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
    trainee = trainee_of(CONFIG.changed(model_ema=True, model_ema_decay=0.9), DistributedContext())
    begin = trainee.model.fc.weight.detach().clone()
    step(trainee, *batch(), updates=5)
    now, averaged = trainee.model.fc.weight.detach(), trainee.judged.fc.weight
    share = ((averaged - begin).norm() / (now - begin).norm()).item()
    assert 0 < share < 1


def test_sync_bn_on_a_cpu_says_so() -> None:
    with pytest.raises(ValueError, match='--sync-bn needs CUDA'):
        trainee_of(CONFIG.changed(sync_bn=True), DistributedContext())
