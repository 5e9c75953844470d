"""Convolutions with merged groups train as the narrow ones do, and keep their names, parameters and optimizers."""

import copy
import json
import pickle

import pytest
import torch
from filling import fill_model, make_input
from torch import Tensor, nn
from variants import filled, images

import timm_sk
from timm_sk.inference import tune_groups
from timm_sk.layers.folded_conv import FoldedConv
from timm_sk.layers.merged_groups import MergedConv, candidates
from timm_sk.pretrained import store_root

pytestmark = pytest.mark.deep

SMALL = dict(batch_size=2, input_size=(3, 32, 32))


@pytest.fixture
def fewest(monkeypatch: pytest.MonkeyPatch) -> list[tune_groups.Call]:
    """Let the widest groups win every measurement, and note what was to be measured."""
    calls = []

    def win(call: tune_groups.Call, autocast: torch.dtype | None) -> int:
        calls.append(call)
        return candidates(call.conv.groups, call.conv.in_channels, call.conv.out_channels)[-1]

    monkeypatch.setattr(tune_groups, 'fastest_in_training', win)
    return calls


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of a training step."""
    model.zero_grad()
    output = model.train()(x)
    output.sin().sum().backward()
    return [output, *(parameter.grad for parameter in model.parameters()), *model.buffers()]


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('wide', [1, 2, 4])
def test_output_and_gradients_are_the_narrow_convolutions(wide, bias):
    narrow = fill_model(nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2, groups=4, bias=bias)).double()
    merged = MergedConv(copy.deepcopy(narrow), wide)
    x = make_input((3, 16, 9, 7)).double()
    results = []
    for conv in (narrow, merged):
        given = x.clone().requires_grad_()
        output = conv(given)
        results.append([output, *torch.autograd.grad(output.sin().sum(), [given, *conv.parameters()])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.detach().abs().max()))


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d'])
def test_a_merged_model_trains_alike(name, fewest):
    plain, merged = (filled(name).double() for _ in range(2))
    optimizer = torch.optim.SGD(merged.parameters(), lr=0.1)
    groups = timm_sk.merge_groups_for_training(merged, **SMALL)
    convs = {path: module for path, module in merged.named_modules() if isinstance(module, MergedConv)}
    assert groups
    assert {path: conv.wide_groups for path, conv in convs.items()} == groups
    assert all(conv.wide_groups < conv.groups for conv in convs.values())
    assert list(merged.state_dict()) == list(plain.state_dict())
    x = images(4, dtype=torch.float64)
    for found, expected in zip(step(merged, x), step(plain, x), strict=True):
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1)
    before = {path: conv.weight.detach().clone() for path, conv in convs.items()}
    optimizer.step()  # made before the merging
    assert all(not torch.equal(convs[path].weight, weight) for path, weight in before.items())
    plain.load_state_dict(merged.state_dict())
    assert (merged.eval()(x) - plain.eval()(x)).abs().max() <= 1e-11 * plain(x).abs().max()


@torch.no_grad()
def test_measured_where_gradients_are_off():
    assert timm_sk.merge_groups_for_training(filled('sknet_atto'), **SMALL) is not None


def test_measuring_leaves_modes_statistics_and_gradients_alone(fewest):
    model = filled('sknet_atto')
    model.train().layer1.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    timm_sk.merge_groups_for_training(model, **SMALL)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert timm_sk.merge_groups_for_training(model, **SMALL) == {}  # all are


def test_inputs_are_measured_as_they_come(fewest):
    model = filled('sknet_atto').to(memory_format=torch.channels_last)
    timm_sk.merge_groups_for_training(model, **SMALL, autocast=torch.bfloat16)
    first = fewest[0]
    assert (first.shape, first.channels_last) == ([2, 32, 8, 8], True)
    assert first.picture().is_contiguous(memory_format=torch.channels_last)
    fewest.clear()
    timm_sk.merge_groups_for_training(filled('sknet_atto'), batch_size=5)  # size of the checkpoint
    assert (fewest[0].shape, fewest[0].channels_last) == ([5, 32, 8, 8], False)


def test_choices_are_measured_forward_and_backward_and_remembered():
    model = filled('sknet_atto')
    timm_sk.merge_groups_for_training(model, **SMALL)
    path = store_root() / tune_groups.FILE_NAME
    found = json.loads(path.read_text())
    assert len(found) == 10  # two branches in five units
    assert all('training, autocast None' in key for key in found)
    path.write_text(json.dumps(dict.fromkeys(found, 2)))  # what another machine might have found
    assert set(timm_sk.merge_groups_for_training(filled('sknet_atto'), **SMALL).values()) == {2}
    path.write_text('{"half')
    assert timm_sk.merge_groups_for_training(filled('sknet_atto'), **SMALL, remember=False) is not None
    assert path.read_text() == '{"half'
    deployed = timm_sk.deploy(filled('sknet_atto'), **SMALL, compile=False)
    assert len(json.loads(path.read_text())) == 10  # choices of inference beside those
    assert deployed is not None


@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_every_candidate_is_run_in_both_directions(autocast, monkeypatch):
    conv = fill_model(nn.Conv2d(16, 16, 3, padding=1, groups=8))
    call = tune_groups.Call(conv, [2, 16, 5, 5], torch.float32, True)
    shapes = {}

    def run_each(runs, device):
        for number, run in runs.items():
            shapes[number] = [tuple(gradient.shape) for gradient in run()]
        return {number: [1.0 if number == 2 else 2.0] for number in runs}

    monkeypatch.setattr(tune_groups, 'measure', run_each)
    assert tune_groups.fastest_in_training(call, autocast) == 2
    assert shapes == {number: [(2, 16, 5, 5), (16, 2, 3, 3), (16,)] for number in (8, 4, 2, 1)}
    assert conv.weight.grad is None


def test_a_merged_model_is_deployed_copied_and_compiled(fewest):
    model = filled('sknet_atto')
    expected = model(images(size=32)).detach()
    timm_sk.merge_groups_for_training(model, **SMALL)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.compile(model, backend='eager')):
        torch.testing.assert_close(twin(images(size=32)).detach(), expected, rtol=0, atol=1e-4)
    deployed = timm_sk.deploy(model, **SMALL, compile=False, merge_groups=False)
    assert not [module for module in deployed.modules() if isinstance(module, MergedConv)]
    assert [module for module in deployed.modules() if isinstance(module, FoldedConv) and module.groups > 1]
    torch.testing.assert_close(deployed(images(size=32)), expected, rtol=0, atol=1e-4)


def test_what_looks_at_a_convolution_keeps_it(fewest):
    model = filled('sknet_atto')
    watched = model.layer1[0].conv2.paths[0].conv
    watched.register_forward_hook(lambda *_: None)
    assert 'layer1.0.conv2.paths.0.conv' not in timm_sk.merge_groups_for_training(model, **SMALL)
    assert model.layer1[0].conv2.paths[0].conv is watched


def test_wrong_sizes():
    with pytest.raises(ValueError, match='batch_size must be made of integers of at least 1, got 0'):
        timm_sk.merge_groups_for_training(filled('sknet_atto'), batch_size=0)
    with pytest.raises(ValueError, match=r'does not take pictures of \[5, 32, 32\]'):
        timm_sk.merge_groups_for_training(filled('sknet_atto'), batch_size=2, input_size=(5, 32, 32))
