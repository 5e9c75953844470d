"""Merged groups in training: same outputs and gradients, same names, parameters and optimizers."""

import copy
import pickle

import pytest
import torch
from random_weights import fill_model, make_input
from timm_pair import run_step
from torch import Tensor, nn
from variants import filled, images

import timm_sk
from timm_sk.atomic_io import read_json, write_json
from timm_sk.inference import tune_groups
from timm_sk.inference.autotune import FILE_NAME
from timm_sk.inference.conv_inputs import memory_format_of, random_input
from timm_sk.layers.folded_conv import FoldedConv
from timm_sk.layers.merged_groups import MergedConv
from timm_sk.pretrained import store_root

pytestmark = pytest.mark.deep

SMALL = dict(batch_size=2, input_size=(3, 32, 32))


@pytest.fixture
def fewest(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let the fewest groups win every measurement; the inputs that were to be measured."""
    inputs = []

    def fastest(conv: nn.Conv2d, like: Tensor, autocast: torch.dtype | None) -> int:
        inputs.append(like)
        return tune_groups.group_counts(conv)[-1]

    monkeypatch.setattr(tune_groups, 'fastest_in_training', fastest)
    return inputs


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('wide', [1, 2, 4])
def test_merged_conv_output_and_gradients(wide, bias):
    narrow = fill_model(nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2, groups=4, bias=bias)).double()
    merged = MergedConv(copy.deepcopy(narrow), wide)
    x = make_input((3, 16, 9, 7)).double()
    for expected, found in zip(*(run_step(conv, x).values() for conv in (narrow, merged)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d'])
def test_merged_model_trains_equally(name, fewest):
    plain, merged = (filled(name).double() for _ in range(2))
    optimizer = torch.optim.SGD(merged.parameters(), lr=0.1)
    groups = timm_sk.merge_groups_for_training(merged, **SMALL)
    convs = {path: module for path, module in merged.named_modules() if isinstance(module, MergedConv)}
    assert groups
    assert {path: conv.wide_groups for path, conv in convs.items()} == groups
    assert all(conv.wide_groups < conv.groups for conv in convs.values())
    assert list(merged.state_dict()) == list(plain.state_dict())
    x = images(4, dtype=torch.float64)
    steps = [run_step(model.train(), x).values() for model in (merged, plain)]
    for found, expected in zip(*steps, strict=True):
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1)
    before = {path: conv.weight.detach().clone() for path, conv in convs.items()}
    optimizer.step()  # made before the merging
    assert all(not torch.equal(convs[path].weight, weight) for path, weight in before.items())
    plain.load_state_dict(merged.state_dict())
    assert (merged.eval()(x) - plain.eval()(x)).abs().max() <= 1e-11 * plain(x).abs().max()


def test_measuring_changes_nothing(fewest):
    model = filled('sknet_atto')
    model.train().layer1.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    timm_sk.merge_groups_for_training(model, **SMALL)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert timm_sk.merge_groups_for_training(model, **SMALL) == {}  # all are


def test_inputs_have_shape_and_memory_format_of_the_model(fewest):
    model = filled('sknet_atto').to(memory_format=torch.channels_last)
    timm_sk.merge_groups_for_training(model, **SMALL, autocast=torch.bfloat16)
    timm_sk.merge_groups_for_training(filled('sknet_atto'), batch_size=5)  # size of the checkpoint
    first, other = fewest[0], fewest[10]
    assert (list(first.shape), list(other.shape)) == ([2, 32, 8, 8], [5, 32, 8, 8])
    assert [memory_format_of(x) for x in (first, random_input(first, torch.device('cpu')), other)] == [
        torch.channels_last,
        torch.channels_last,
        torch.contiguous_format,
    ]


@torch.no_grad()
def test_results_are_remembered():
    path, model = store_root() / FILE_NAME, filled('sknet_atto')
    expected = model(images(size=32))
    timm_sk.deploy(model, **SMALL, compile=False, remember=False)
    assert not path.exists()
    timm_sk.merge_groups_for_training(copy.deepcopy(model), **SMALL)
    found = read_json(path, version=1)
    assert len(found) == 10  # two branches in five units
    assert all('training, autocast None' in key for key in found)
    timm_sk.deploy(model, **SMALL, compile=False)
    found = read_json(path, version=1)
    assert len(found) == 20  # those of inference have other keys
    assert all('torch 2' in key and 'groups 8' in key for key in found)
    write_json(path, dict.fromkeys(found, 2), version=1)  # as another machine might have found
    deployed = timm_sk.deploy(model, **SMALL, compile=False)
    merged = [module.wide_groups for module in deployed.modules() if getattr(module, 'groups', 1) > 1]
    assert merged == [2] * 10
    torch.testing.assert_close(deployed(images(size=32)), expected, rtol=0, atol=1e-4)
    assert set(timm_sk.merge_groups_for_training(model, **SMALL).values()) == {2}


@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_every_candidate_runs_forward_and_backward(autocast, monkeypatch):
    conv = fill_model(nn.Conv2d(16, 16, 3, padding=1, groups=8))
    shapes = {}

    def run_each(runs, device):
        for number, run in runs.items():
            shapes[number] = [tuple(gradient.shape) for gradient in run()]
        return {number: [1.0 if number == 2 else 2.0] for number in runs}

    monkeypatch.setattr(tune_groups, 'measure', run_each)
    assert tune_groups.fastest_in_training(conv, torch.empty(2, 16, 5, 5, device='meta'), autocast) == 2
    assert shapes == {number: [(2, 16, 5, 5), (16, 2, 3, 3), (16,)] for number in (8, 4, 2, 1)}
    assert conv.weight.grad is None


def test_merged_model_is_deployed_copied_and_compiled(fewest):
    model = filled('sknet_atto')
    expected = model(images(size=32)).detach()
    timm_sk.merge_groups_for_training(model, **SMALL)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.compile(model, backend='eager')):
        torch.testing.assert_close(other(images(size=32)).detach(), expected, rtol=0, atol=1e-4)
    deployed = timm_sk.deploy(model, **SMALL, compile=False, merge_groups=False)
    assert not [module for module in deployed.modules() if isinstance(module, MergedConv)]
    assert [module for module in deployed.modules() if isinstance(module, FoldedConv) and module.groups > 1]
    torch.testing.assert_close(deployed(images(size=32)), expected, rtol=0, atol=1e-4)


def test_convolution_with_a_hook_is_not_merged(fewest):
    model = filled('sknet_atto')
    conv = model.layer1[0].conv2.paths[0].conv
    conv.register_forward_hook(lambda *_: None)
    assert 'layer1.0.conv2.paths.0.conv' not in timm_sk.merge_groups_for_training(model, **SMALL)
    assert model.layer1[0].conv2.paths[0].conv is conv
