"""Effective receptive fields of models whose fields are known."""

import pytest
import timm
import torch
from torch import nn
from variants import images

import timm_sk
from timm_sk.explain import receptive_fields


def one_unit(kernel_sizes, chosen, *, before=None):
    """A unit that selects one branch, with kernels of ones."""
    unit = timm_sk.SelectiveKernel(3, 4, kernel_size=kernel_sizes, split_input=False, keep_3x3=False)
    for path in unit.paths:
        nn.init.ones_(path.conv.weight)
    nn.init.zeros_(unit.attn.fc_reduce.weight)
    nn.init.ones_(unit.attn.bn.bias)
    with torch.no_grad():
        logits = torch.full((len(kernel_sizes), 4), -20.0)
        logits[chosen] = 20.0
        unit.attn.fc_select.weight.copy_(logits.flatten()[:, None, None, None].expand_as(unit.attn.fc_select.weight))
    return nn.Sequential(before or nn.Identity(), unit).eval()


@pytest.mark.parametrize(('chosen', 'extent'), [(0, 3), (1, 5), (2, 9)])
def test_single_convolution(chosen, extent):
    x = torch.rand(2, 3, 32, 32) + 0.5
    model = one_unit([3, 5, 9], chosen)
    assert {path: side.tolist() for path, side in receptive_fields(model, x).items()} == {'1': [extent, extent]}


def test_stride_and_image_border():
    stem = nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=False)
    nn.init.ones_(stem.weight)
    (side,) = receptive_fields(one_unit([3, 5], 1, before=stem), torch.ones(1, 3, 64, 64)).values()
    assert side.item() == 11  # 3 + 2 * (5 - 1)
    (side,) = receptive_fields(one_unit([3, 31], 1), torch.ones(1, 3, 16, 16)).values()
    assert side.item() == 16


def test_small_gradients():
    model = one_unit([3, 5], 1)
    with torch.no_grad():
        model[1].paths[1].conv.weight[:, :, 0] = 0.04  # a row of five, below 4.55 % of the largest
    (side,) = receptive_fields(model, torch.ones(1, 3, 16, 16)).values()
    assert side.item() == pytest.approx(20**0.5)
    with torch.no_grad():
        model[1].paths[1].conv.weight[:, :, 0] = 0.05
    (side,) = receptive_fields(model, torch.ones(1, 3, 16, 16)).values()
    assert side.item() == 5


def test_no_effect():
    model = one_unit([3, 5], 0)
    (side,) = receptive_fields(model, -torch.ones(1, 3, 16, 16)).values()  # which no ReLU lets through
    assert side.item() == 0
    with pytest.raises(ValueError, match='Linear has no unit that selects'):
        receptive_fields(nn.Linear(2, 2), images())


def test_images_are_independent_and_the_model_unchanged():
    model = timm.create_model('sknet_atto.shapes', pretrained=True).train()
    model.bn1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = images(3, size=32)
    with torch.inference_mode():
        found = receptive_fields(model, x)
    for index in range(3):
        alone = receptive_fields(model, x[index : index + 1])
        assert all(torch.equal(alone[path][0], side[index]) for path, side in found.items())
    assert list(found) == [f'layer{stage}.0.conv2' for stage in (1, 2, 3, 4)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training
    assert not model.bn1.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
