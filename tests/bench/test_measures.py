"""Parts of the bench: memory, convolutions alone, random weights, comparisons."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from timm_sk.bench.agreement import BOUNDS, compare, differences
from timm_sk.bench.conv_replay import record_convs
from timm_sk.bench.counterparts import build
from timm_sk.bench.memory import peak_bytes, saved_bytes
from timm_sk.bench.random_weights import fill
from timm_sk.bench.steps import Inference, Training

CPU = torch.device('cpu')
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())


def test_saved_bytes_by_hand():
    net, images = small_net(), torch.randn(2, 3, 8, 8)
    own = list(net.parameters())
    image, hidden, weight = 2 * 3 * 8 * 8 * 4, 2 * 4 * 6 * 6 * 4, 4 * 3 * 3 * 3 * 4
    assert saved_bytes(lambda: net(images), excluded=own) == image + hidden
    assert saved_bytes(lambda: net(images)) == image + hidden + weight


def test_saved_bytes_of_shared_storage():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x * x + x[:10].sin().sum()) == 4000
    assert saved_bytes(lambda: x * x, excluded=[x]) == 0


def test_saved_bytes_without_casts_of_weights():
    net, images = small_net(), torch.randn(2, 3, 8, 8)

    def forward():
        with torch.autocast('cpu', torch.bfloat16):
            return net(images)

    assert saved_bytes(forward, excluded=net.parameters()) == 2 * 3 * 8 * 8 * 2 + 2 * 4 * 6 * 6 * 2
    assert saved_bytes(forward) == 2 * 3 * 8 * 8 * 2 + 2 * 4 * 6 * 6 * 2 + 4 * 3 * 3 * 3 * 2


def test_peak_bytes():
    kept = []

    def step():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(500)
        del second
        kept.append(third)

    for _ in range(2):  # tensors from before do not count
        assert peak_bytes(step, device=CPU) == 4 * (1000 + 2000)
    assert peak_bytes(lambda: None, device=CPU) == 0


def test_conv_replays_at_inference():
    net = build('ours', 'sknet_atto').eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    outputs = []
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_hook(lambda conv, inputs, output: outputs.append(output.detach().clone()))
    with torch.no_grad():
        replays = record_convs(net, lambda: net(images))
        expected = list(outputs)
        assert len(replays) == len(expected) == len(convs)
        found = [replay() for replay in replays]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert all(output.is_contiguous(memory_format=torch.channels_last) for output in found)
        net(images)
        assert len(outputs) == 2 * len(convs)
        assert not any(len(conv._forward_hooks) > 1 for conv in convs)


def test_conv_replays_in_training(monkeypatch):
    monkeypatch.setattr(torch, 'randn_like', torch.ones_like)
    first, second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2, groups=2, padding=1, bias=False)
    images = torch.randn(2, 3, 12, 12)
    replays = record_convs(nn.Sequential(first, second), lambda: second(first(images)))
    hidden = first(images)
    leaf = hidden.detach().requires_grad_()
    expected = [
        torch.autograd.grad(hidden.sum(), [first.weight, first.bias]),  # the images need no gradient
        torch.autograd.grad(second(leaf).sum(), [leaf, second.weight]),
    ]
    for replay, gradients in zip(replays, expected, strict=True):
        torch.testing.assert_close(replay(), gradients)


def test_conv_replays_in_the_dtype_of_autocast():
    net = small_net()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        (replay,) = record_convs(net, lambda: net(torch.randn(1, 3, 8, 8)))
    assert replay().dtype is torch.bfloat16


def test_random_weights():
    net = fill(build('timm', 'resnest14d'), torch.randn(4, 3, 64, 64)).eval()
    with torch.no_grad():
        outputs = net(torch.randn(4, 3, 64, 64))
    assert 0.1 < outputs.std() < 10
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.abs().min() > 0.1 and norm.weight.std() > 0 and norm.momentum == 0.1 for norm in norms)
    assert all(norm.running_var.min() > 0 and norm.running_var.std() > 0 for norm in norms)


@pytest.mark.parametrize(
    ('make', 'compared'),
    [
        (lambda net: Training(net, [IMAGES], torch.tensor([1, 2])), set(BOUNDS)),
        (lambda net: Inference(net, [IMAGES]), {'output'}),
    ],
)
def test_small_error_is_detected(make, compared):
    net = fill(build('ours', 'skresnet18'), torch.randn(4, 3, 64, 64))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    reference = make(net).observe()
    net.load_state_dict(weights)
    again = differences(make(net).observe(), reference)
    assert set(again) == compared
    assert compare(again, dtype=torch.float32).passes
    net.load_state_dict(weights)
    weight = net.get_parameter('layer3.0.conv1.paths.1.conv.weight').data
    weight.view(-1)[: weight.numel() // 100] *= 1.5
    assert not compare(differences(make(net).observe(), reference), dtype=torch.float32).passes


def test_differences():
    reference = {'output': torch.tensor([[1.0, -4.0]]), 'gradients': torch.tensor([3.0, 4.0])}
    observed = {'output': torch.tensor([[2.0, -4.0]]), 'gradients': torch.tensor([3.0, 3.0])}
    assert differences(observed, reference) == pytest.approx({'output': 1 / 4, 'gradients': 1 / 5})


def test_bounds():
    exact = compare(dict.fromkeys(BOUNDS, 1e-6) | {'gradients': 2e-2}, dtype=torch.float32)
    assert (exact.compared, exact.difference, exact.bound, exact.passes) == ('gradients', 2e-2, 5e-2, True)
    broken = compare(dict.fromkeys(BOUNDS, 1e-6) | {'loss': 2e-4}, dtype=torch.float32)
    assert (broken.compared, broken.passes) == ('loss', False)
    timms = {'output': 0.04, 'gradients': 1.0}
    eps = 0.0078125
    low = {'dtype': torch.bfloat16, 'baseline': timms}
    assert compare({'output': 0.08 + eps, 'gradients': 9.0}, **low).passes
    assert not compare({'output': 0.0881, 'gradients': 0.0}, **low).passes
    assert compare(timms, dtype=torch.bfloat16).bound == 0.5
    assert not compare({'output': math.nan}, dtype=torch.float32).passes


def test_observe_changes_no_parameter():
    net = fill(build('ours', 'sknet_atto'), torch.randn(8, 3, 32, 32))
    step = Training(net, [torch.randn(4, 3, 32, 32)] * 2, torch.arange(4))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = step.observe()['loss']
    assert torch.isclose(loss, F.cross_entropy(net(step.images[0]), step.labels))
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    step(1)
    assert not any(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
