"""Numbers of single units, and the choice of units."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import timm_sk
from timm_sk import explain
from timm_sk.attention import kernel_extents
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


@pytest.mark.deep
def test_contribution_difference():
    found = unit([[0.5], [0.2], [0.3]], (5, 3, 3))
    with pytest.raises(ValueError, match='SK_2_1 has no contributions'):
        explain.contribution_difference(found)
    maps = torch.tensor([[[[3.0, 0.0, 0.0]], [[1.0, 2.0, 0.0]], [[9.0, 9.0, 9.0]]]])  # [1, 3, 1, 3]
    difference = explain.contribution_difference(replace(found, contributions=maps))
    assert difference.tolist() == [[[0.5, -1.0, 0.0]]]  # the first branch against the second


def test_one_branch():
    assert math.isnan(explain.attention_difference(unit([[0.25, 0.5]], (3,))))
    assert explain.expected_kernel_extent(unit([[0.25, 0.5]], (3,))).tolist() == pytest.approx([3 * 0.375])


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
