"""Numbers of single units compared with an explicit softmax, and the choice of units."""

import math

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from variants import filled, images

import timm_sk
from timm_sk import explain
from timm_sk.layers.kernel_extent import kernel_extents
from timm_sk.models.lucid_units import BareSelectiveKernel
from timm_sk.models.sknet import StackedSelectiveKernel

PAPERS = ['SK_2_1', 'SK_2_2', 'SK_2_3', 'SK_3_1', 'SK_3_4', 'SK_4_6', 'SK_5_1', 'SK_5_3']


def unit(weights, extents):
    """A unit of one image with these weights, M lists of C."""
    return timm_sk.UnitWeights('SK_2_1', 'layer1.0', torch.tensor([weights]), extents)


@pytest.mark.parametrize(
    ('extents', 'difference'),
    [((3, 5, 7), 0.3), ((7, 5, 3), -0.3), ((5, 7, 3), -0.05), ((3, 3, 3), 0.3), ((3, 5, 5), 0.3), ((5, 3, 3), -0.25)],
)
def test_attention_difference_and_expected_extent(extents, difference):
    weights = [[0.1, 0.2], [0.3, 0.5], [0.6, 0.3]]  # means 0.15, 0.4, 0.45
    found = explain.attention_difference(unit(weights, extents))
    assert found.tolist() == pytest.approx([difference])
    expected = sum(extent * mean for extent, mean in zip(extents, (0.15, 0.4, 0.45), strict=True))
    assert explain.expected_kernel_extent(unit(weights, extents)).tolist() == pytest.approx([expected])


def test_one_branch():
    assert math.isnan(explain.attention_difference(unit([[0.25, 0.5]], (3,))))
    assert explain.expected_kernel_extent(unit([[0.25, 0.5]], (3,))).tolist() == pytest.approx([3 * 0.375])


@torch.inference_mode()
def test_numbers_of_a_softmax():
    model = filled('sknet50_3path')
    layer = model.layer1[0].conv2
    seen = {}
    layer.register_forward_hook(lambda unit, inputs, output: seen.update(branches=unit.split(inputs[0])))
    x = images(size=64)
    first = timm_sk.attention_weights(model, x)[0]
    attn = layer.attn
    descriptor = sum(seen['branches']).mean((2, 3), keepdim=True)
    logits = attn.fc_select(torch.relu(attn.bn(attn.fc_reduce(descriptor)))).reshape(2, 3, -1)
    exponentials = logits.exp()
    weights = exponentials / exponentials.sum(1, keepdim=True)
    torch.testing.assert_close(explain.attention_difference(first), (weights[:, 2] - weights[:, 0]).mean(1))
    extent = (3 * weights[:, 0] + 5 * weights[:, 1] + 7 * weights[:, 2]).mean(1)
    torch.testing.assert_close(explain.expected_kernel_extent(first), extent)


def test_kernel_extents():
    assert kernel_extents(timm_sk.SelectiveKernel(8, kernel_size=[7, 3, 5], split_input=False)) == (7, 3, 5)
    assert kernel_extents(timm_sk.SelectiveKernel(8, kernel_size=[3, 5], keep_3x3=False)) == (3, 5)
    assert kernel_extents(timm_sk.SelectiveKernel(8, kernel_size=[3, 5], dilation=2)) == (5, 9)
    assert kernel_extents(StackedSelectiveKernel(8, kernel_size=[3, 5, 7], stride=2, split_input=False)) == (3, 5, 7)
    assert kernel_extents(BareSelectiveKernel(16, 16, [1, 4, 9], dilation=2, padding='same')) == (1, 7, 17)
    unit = timm_sk.SelectiveKernel(8, split_input=False)
    unit.paths[0] = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, (1, 5)), nn.Identity())
    assert kernel_extents(unit) == (3 + 2 * 4, 5)
    assert kernel_extents(timm_sk.SplitAttention(24, radix=3, dilation=2)) == (5, 5, 5)


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest14d', 'sk_shufflenetv2_x0_5', 'sk_mobilenetv2_100'])
def test_units_of_folded_models(name):
    model, x = filled(name), images(size=64)
    expected = timm_sk.attention_weights(model, x)
    folded = [reparameterize_model(model), timm_sk.deploy(model, input_size=(3, 64, 64), batch_size=2, compile=False)]
    for other in folded:
        found = timm_sk.attention_weights(other, x)
        assert [one.name for one in found] == [one.name for one in expected]
        for one, two in zip(found, expected, strict=True):
            assert one.kernel_extents == two.kernel_extents
            torch.testing.assert_close(one.weights, two.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (PAPERS, ('SK_2_3', 'SK_3_4', 'SK_5_3')),
        ([*PAPERS, 'SK_3_8'], ('SK_2_3', 'SK_3_4', 'SK_5_3')),
        (['SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1'], ('SK_2_1', 'SK_3_1', 'SK_5_1')),
        (['SA_2_1', 'SA_2_2', 'SA_3_1', 'SA_3_2'], ('SA_2_2', 'SA_3_2')),
        (['first', 'second', 'third', 'fourth', 'fifth'], ('first', 'third', 'fifth')),
        (['only'], ('only',)),
    ],
)
def test_default_units(names, expected):
    assert explain.default_units(names) == expected
    assert explain.choose_units(names) == expected


def test_unknown_units():
    assert explain.choose_units(PAPERS, ['SK_5_1', 'SK_2_1', 'SK_5_1']) == ('SK_5_1', 'SK_2_1')
    with pytest.raises(ValueError, match=r'Unknown unit SK_9_9, conv1: the model has SK_2_1, SK_2_2, .*SK_5_3'):
        explain.choose_units(PAPERS, ['SK_2_1', 'SK_9_9', 'conv1'])
    with pytest.raises(ValueError, match='No unit given: the model has SK_2_1'):
        explain.choose_units(PAPERS, [])


def test_models_without_selection():
    for model in (timm.create_model('resnet18'), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match='has no unit that selects'):
            explain.receptive_fields(model, images())
