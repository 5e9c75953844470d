"""Folding, merging and the folded convolution, one layer at a time."""

import copy
import pickle

import pytest
import timm.layers
import torch
import torch.nn.utils.prune
from random_weights import fill_model, make_input
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from timm_sk.errors import MismatchedCheckpointError
from timm_sk.layers import ConvNormAct, SelectiveKernel, SplitAttention
from timm_sk.layers.folded_conv import FoldedConv, FoldedConvNormAct, fold, fold_sequence
from timm_sk.layers.merged_groups import candidates, merge_groups

X = make_input((2, 8, 9, 7)).double()


def filled(module: nn.Module) -> nn.Module:
    return fill_model(module.double()).eval()


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= 1e-13 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'norm',
    [
        nn.BatchNorm2d(12, eps=0.1),
        nn.BatchNorm2d(12, affine=False),
        nn.SyncBatchNorm(12),
        FrozenBatchNorm2d(12),
        timm.layers.BatchNormAct2d(12),
        timm.layers.FrozenBatchNormAct2d(12, act_layer=nn.SiLU),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_fold_norms(norm, bias):
    layers = filled(nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, 2, 4, bias=bias), copy.deepcopy(norm)))
    with torch.no_grad():
        expected = layers(X)
        fold_sequence(layers)
        assert isinstance(layers[0], FoldedConv)
        assert isinstance(layers[1], nn.Identity)
        assert close(layers(X), expected)


@pytest.mark.parametrize(
    ('conv', 'norm'),
    [
        (nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12, track_running_stats=False)),
        (nn.Conv2d(8, 12, 3), nn.GroupNorm(3, 12)),
        (nn.Conv2d(8, 12, 3), timm.layers.LayerNorm2d(12)),
        (nn.Conv2d(8, 12, 3, padding=1, padding_mode='reflect'), nn.BatchNorm2d(12)),
        (nn.Conv2d(8, 12, 3, padding='same'), nn.BatchNorm2d(12)),
        (timm.layers.Conv2dSame(8, 12, 3, stride=2), nn.BatchNorm2d(12)),
        (timm.layers.StdConv2d(8, 12, 3), nn.BatchNorm2d(12)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 12, 3)), nn.BatchNorm2d(12)),
        (nn.utils.prune.random_unstructured(nn.Conv2d(8, 12, 3), 'weight', 0.5), nn.BatchNorm2d(12)),
        (nn.ConvTranspose2d(8, 12, 3), nn.BatchNorm2d(12)),
        (nn.Conv2d(8, 12, 3), timm.layers.BatchNormAct2d(12, drop_layer=nn.Softmax2d)),
    ],
    ids=lambda module: type(module).__name__,
)
@torch.no_grad()
def test_layers_that_cannot_be_folded(conv, norm):
    layers = nn.Sequential(conv, norm, nn.ReLU()).double().eval()
    expected, before = layers(X), repr(layers)
    fold_sequence(layers)
    assert repr(layers) == before
    assert torch.equal(layers(X), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_folds_in_float32(dtype):
    conv, norm = fill_model(nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12))).to(dtype).eval()
    weight, bias = fold(conv, norm)
    assert weight.dtype is bias.dtype is dtype
    exact = fold(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
    assert torch.equal(weight, exact[0].float().to(dtype))
    assert float((bias.double() - exact[1]).abs().max()) <= 0.01


@pytest.mark.parametrize('act', [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity()], ids=str)
@torch.no_grad()
def test_activation_and_shortcut(act):
    unit = filled(ConvNormAct(8, 12, 3, stride=2, groups=4, drop_layer=timm.layers.DropBlock2d))
    shortcut = make_input((2, 12, 5, 4)).double()
    unit.act = act
    folded = copy.deepcopy(unit).fuse()
    assert isinstance(folded, FoldedConvNormAct)
    assert not folded.training
    assert close(folded(X), unit(X))
    unit.act = nn.Identity()
    assert close(folded(X, shortcut), act(unit(X) + shortcut))


@pytest.mark.parametrize('unit', [SelectiveKernel(8, 12), SplitAttention(8, 12, groups=2)], ids=type)
def test_units_on_their_own(unit):
    unit = filled(copy.deepcopy(unit))
    expected = unit(X).detach()
    folded = timm.utils.reparameterize_model(nn.Sequential(unit))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert close(folded(X).detach(), expected)
    again = timm.utils.reparameterize_model(folded)
    assert repr(again) == repr(folded)
    with pytest.raises(MismatchedCheckpointError, match='A folded model needs folded weights, got 0'):
        folded.load_state_dict(nn.Sequential(unit).state_dict(), strict=False)


@pytest.mark.parametrize('training', ['both', 'norm'])
def test_train_mode(training):
    unit = ConvNormAct(8, 12).eval()
    (unit if training == 'both' else unit.bn).train()
    with pytest.raises(ValueError, match=r'in eval mode only, got a \w+ in train mode'):
        unit.fuse()
    assert isinstance(unit.bn, nn.BatchNorm2d)


@pytest.mark.parametrize('merged', [8, 4, 2, 1])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_merged_groups(merged, layout):
    x, weight = make_input((2, 16, 6, 5)).double(), make_input((24, 2, 3, 3)).double().contiguous(memory_format=layout)
    wide = merge_groups(weight, 8, merged)
    assert wide.shape == (24, 16 // merged, 3, 3)
    assert wide.is_contiguous(memory_format=layout)
    assert int((wide != 0).sum()) == weight.numel()
    expected = torch.nn.functional.conv2d(x, weight, groups=8)
    assert close(torch.nn.functional.conv2d(x, wide, groups=merged), expected)


def test_merged_groups_must_divide():
    with pytest.raises(ValueError, match='must divide the 8 groups of the convolution, got 3'):
        merge_groups(torch.ones(24, 2, 3, 3), 8, 3)


def test_candidates():
    assert candidates(32, 128, 128) == [32, 16, 8, 4, 2, 1]
    assert candidates(32, 1024, 1024) == [32, 16, 8]
    assert candidates(1, 64, 64) == [1]
    assert candidates(116, 116, 116) == [116]


@torch.no_grad()
def test_wide_and_packed_weights():
    conv = filled(nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.BatchNorm2d(12))).float()
    fold_sequence(conv)
    layer, x = conv[0], X.float().contiguous(memory_format=torch.channels_last)
    expected = layer(x)
    layer.merge(2)
    layer.pack(x.shape)
    assert layer.packed is not None
    assert 'as 2 groups' in repr(layer)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.wide.shape == (12, 4, 3, 3)
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-5)
        assert other.state_dict().keys() == {'weight', 'bias'}
    assert copy.deepcopy(layer).packed is None
    doubled = copy.deepcopy(layer)
    doubled.pack(x.shape)
    torch.testing.assert_close(doubled.double()(x.double()).float(), expected, rtol=0, atol=1e-5)
    layer.load_state_dict({key: 2 * tensor for key, tensor in layer.state_dict().items()})
    torch.testing.assert_close(layer(x), 2 * expected, rtol=0, atol=1e-5)
