"""The parts of the bench by themselves: memory, floor, times, agreement."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from timm_sk.bench.agreement import BOUNDS, differences, judge, observe
from timm_sk.bench.counterparts import build
from timm_sk.bench.floor import floor_step, record
from timm_sk.bench.memory import peak_bytes, peak_of, saved_bytes
from timm_sk.bench.random_weights import fill
from timm_sk.bench.steps import Inference, Training
from timm_sk.inference.timing import interleave, ratios, summarise

CPU = torch.device('cpu')
PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())


def test_saved_bytes_by_hand():
    net, pictures = small_net(), torch.randn(2, 3, 8, 8)
    own = list(net.parameters())
    picture, hidden, weight = 2 * 3 * 8 * 8 * 4, 2 * 4 * 6 * 6 * 4, 4 * 3 * 3 * 3 * 4
    assert saved_bytes(lambda: net(pictures), left_out=own) == picture + hidden
    assert saved_bytes(lambda: net(pictures)) == picture + hidden + weight


def test_saved_bytes_counts_a_storage_once_and_whole():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x * x + x[:10].sin().sum()) == 4000
    assert saved_bytes(lambda: x * x, left_out=[x]) == 0


def test_saved_bytes_of_autocast_leave_out_its_copies_of_the_weights():
    net, pictures = small_net(), torch.randn(2, 3, 8, 8)

    def forward():
        with torch.autocast('cpu', torch.bfloat16):
            return net(pictures)

    assert saved_bytes(forward, left_out=net.parameters()) == 2 * 3 * 8 * 8 * 2 + 2 * 4 * 6 * 6 * 2
    assert saved_bytes(forward) == 2 * 3 * 8 * 8 * 2 + 2 * 4 * 6 * 6 * 2 + 4 * 3 * 3 * 3 * 2


def test_peak_of_a_step():
    def step():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(500)
        del second, third

    assert peak_bytes(step, device=CPU) == 4 * (1000 + 2000)
    assert peak_of([(1, 10), (2, 20), (1, -10), (7, -99), (3, 15), (2, -20)]) == 35  # 7 was there before


@pytest.mark.parametrize('train', [False, True])
def test_floor_has_every_convolution_with_its_input(train):
    net = build('ours', 'sknet_atto').train(train).to(memory_format=torch.channels_last)
    pictures = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    outputs = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, inputs, output: outputs.append(output.detach().clone()))
    with torch.set_grad_enabled(train):
        convolutions = record(net, lambda: net(pictures))
    assert len(convolutions) == len(outputs) == sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert all(torch.equal(c.run(), output) for c, output in zip(convolutions, outputs, strict=True))
    assert {c.settings['groups'] for c in convolutions} == {1, 8}
    assert {c.settings['dilation'] for c in convolutions} == {(1, 1), (2, 2)}
    assert all(c.picture.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    assert [c.output_gradient is not None for c in convolutions] == [train] * len(outputs)
    assert [c.picture.requires_grad for c in convolutions] == [False] + [train] * (len(outputs) - 1)
    floor_step(convolutions)(0)
    outputs.clear()
    with torch.no_grad():
        net(pictures)
    assert len(outputs) == len(convolutions)  # the hooks of `record` are gone


def test_floor_computes_in_the_dtype_of_autocast():
    net = small_net()
    with torch.autocast('cpu', torch.bfloat16):
        (convolution,) = record(net, lambda: net(torch.randn(1, 3, 8, 8)))
    assert {convolution.picture.dtype, convolution.weight.dtype, convolution.run().dtype} == {torch.bfloat16}


def test_floor_of_training_runs_backward(monkeypatch):
    net = small_net()
    (convolution,) = record(net, lambda: net(torch.randn(1, 3, 8, 8)))
    wanted = []
    monkeypatch.setattr(torch.autograd, 'grad', lambda output, inputs, gradient: wanted.append((inputs, gradient)))
    floor_step([convolution])(0)
    assert [(len(inputs), gradient.shape) for inputs, gradient in wanted] == [(1, (1, 4, 6, 6))]
    assert wanted[0][0][0] is convolution.weight  # the picture needs no gradient


def test_ratios_are_of_the_same_round():
    assert ratios([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == [2.0, 1.0, 0.5]
    assert summarise([3.0, 1.0, 2.0, 10.0]) == (1.0, 2.5, 10.0)
    with pytest.raises(ValueError, match='same rounds, got 1 and 2'):
        ratios([1.0], [1.0, 2.0])


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []
    steps = {name: lambda index, name=name: calls.append((name, index)) for name in 'AB'}
    times, repeats = interleave(steps, rounds=7, warmup=2, device=CPU)
    assert calls[:4] == [('A', 0), ('B', 0), ('A', 1), ('B', 1)]
    timed = calls[4:]
    assert [name for name, _ in timed[::repeats]] == list('AB') * 7
    assert [index for _, index in timed[:repeats]] == list(range(repeats))
    assert {name: len(values) for name, values in times.items()} == {'A': 7, 'B': 7}
    with pytest.raises(ValueError, match='at least 7 rounds, got 3'):
        interleave(steps, rounds=3, warmup=2, device=CPU)
    with pytest.raises(ValueError, match='warm-up'):
        interleave(steps, rounds=7, warmup=1, device=CPU)


def test_filled_nets_stay_of_order_one_and_no_norm_is_an_identity():
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
        (lambda net: Training(net, [PICTURES], torch.tensor([1, 2])), set(BOUNDS)),
        (lambda net: Inference(net, [PICTURES]), {'output'}),
    ],
)
def test_one_hundredth_of_one_weight_is_seen(make, compared):
    net = fill(build('ours', 'skresnet18'), torch.randn(4, 3, 64, 64))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    reference = observe(make(net))
    net.load_state_dict(weights)
    again = differences(observe(make(net)), reference)
    assert set(again) == compared
    assert judge(again, dtype=torch.float32).holds
    net.load_state_dict(weights)
    weight = net.get_parameter('layer3.0.conv1.paths.1.conv.weight').data
    weight.view(-1)[: weight.numel() // 100] *= 1.5
    assert not judge(differences(observe(make(net)), reference), dtype=torch.float32).holds


def test_differences_are_relative():
    reference = {'output': torch.tensor([[1.0, -4.0]]), 'gradients': torch.tensor([3.0, 4.0])}
    observed = {'output': torch.tensor([[2.0, -4.0]]), 'gradients': torch.tensor([3.0, 3.0])}
    assert differences(observed, reference) == pytest.approx({'output': 1 / 4, 'gradients': 1 / 5})


def test_bounds():
    exact = judge(dict.fromkeys(BOUNDS, 1e-6) | {'gradients': 2e-2}, dtype=torch.float32)
    assert (exact.compared, exact.difference, exact.bound, exact.holds) == ('gradients', 2e-2, 5e-2, True)
    broken = judge(dict.fromkeys(BOUNDS, 1e-6) | {'loss': 2e-4}, dtype=torch.float32)
    assert (broken.compared, broken.holds) == ('loss', False)
    timms = {'output': 0.04, 'gradients': 1.0}
    eps = 0.0078125
    low = {'dtype': torch.bfloat16, 'baseline': timms}
    assert judge({'output': 0.08 + eps, 'gradients': 9.0}, **low).holds
    assert not judge({'output': 0.0881, 'gradients': 0.0}, **low).holds
    assert judge(timms, dtype=torch.bfloat16).bound == 0.5
    assert not judge({'output': math.nan}, dtype=torch.float32).holds


def test_a_step_of_training_learns_and_observing_does_not():
    net = fill(build('ours', 'sknet_atto'), torch.randn(8, 3, 32, 32))
    step = Training(net, [torch.randn(4, 3, 32, 32)] * 2, torch.arange(4))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = observe(step)['loss']
    assert torch.isclose(loss, F.cross_entropy(net(step.pictures[0]), step.labels))
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    step(1)
    assert not any(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
