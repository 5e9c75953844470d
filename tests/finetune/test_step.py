"""A training step: in two processes, with accumulated gradients, frozen modules, clipping and averaging."""

from pathlib import Path

import pytest
import torch
from ddp_equivalence import CONFIG, make_batch, new_state, record_gradients, require_ddp_equivalence, step

from timm_sk.finetune.train_state import resolve_lr


@pytest.mark.deep
def test_step_in_two_processes(tmp_path: Path) -> None:
    require_ddp_equivalence(tmp_path, backend='gloo', devices=['cpu'] * 2, config=CONFIG, whole=CONFIG)


def test_gradient_accumulation() -> None:
    whole, parts = new_state(), new_state()
    images, targets = make_batch()
    step(whole, images, targets)
    before = [parameter.clone() for parameter in parts.model.parameters()]
    step(parts, images[:4], targets[:4], batches=2, is_last=False)
    assert all(map(torch.equal, before, parts.model.parameters()))
    step(parts, images[4:], targets[4:], batches=2)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(('start', 'first'), [('head', 'fc'), ('layer3', 'layer3')])
def test_freeze(start: str, first: str) -> None:
    state = new_state(CONFIG.changed(freeze=start, freeze_bn=False))
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    step(state, *make_batch())
    names = [name for name, _ in state.model.named_children()]
    frozen = names[: names.index(first)]
    for name, tensor in state.model.state_dict().items():
        if name.partition('.')[0] in frozen:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(state.model.fc.weight, before['fc.weight'])


def test_clip_grad() -> None:
    state = new_state()
    gradients = record_gradients(state)
    step(state, *make_batch(), config=CONFIG.changed(clip_grad=0.01))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_layer_decay() -> None:
    state = new_state(CONFIG.changed(layer_decay=0.5))
    rates = {id(parameter): group['lr'] for group in state.optimizer.param_groups for parameter in group['params']}
    depths = [rates[id(parameter)] for parameter in state.model.parameters()]
    assert depths == sorted(depths)
    assert depths[0] < 0.5 * depths[-1]


def test_model_ema() -> None:
    state = new_state(CONFIG.changed(model_ema=True, model_ema_decay=0.9))
    start = state.model.fc.weight.detach().clone()
    state.progress.updates = 5
    step(state, *make_batch())
    now, averaged = state.model.fc.weight.detach(), state.eval_model.fc.weight
    share = ((averaged - start).norm() / (now - start).norm()).item()
    assert 0 < share < 1


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('settings', 'images', 'lr'),
    [
        (dict(), 64, 1e-3),
        (dict(), 4096, 1e-3),
        (dict(lr=0.3, lr_base=0.1), 64, 0.3),
        (dict(lr=0.3, lr_base=0.1), 512, 0.3),
        *((dict(opt='momentum', lr_base=0.1), images, lr) for images, lr in ((256, 0.1), (512, 0.2), (64, 0.025))),
        (dict(opt='sgd', lr_base=0.18, lr_base_size=384), 768, 0.36),
        *((dict(opt=opt, lr_base=0.1), 1024, 0.2) for opt in ('adamw', 'Adam', 'lamb', 'nadam', 'adabelief')),
        (dict(opt='adamw', lr_base=0.1, lr_base_scale='linear'), 1024, 0.4),
        (dict(opt='sgd', lr_base=0.1, lr_base_scale='sqrt'), 1024, 0.2),
    ],
)
def test_resolve_lr(settings: dict, images: int, lr: float) -> None:
    assert resolve_lr(CONFIG.changed(**dict(lr=None) | settings), images) == pytest.approx(lr)
