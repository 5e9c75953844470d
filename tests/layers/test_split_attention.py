"""The layer alone: parity with timm's and with the paper written out; wrong arguments."""

import pytest
import timm.layers
import torch
from random_weights import fill_model, make_input
from torch import Tensor, nn

import timm_sk
from timm_sk.models.lucid_units import RadixMajorSplitAttention

KINDS = [(radix, groups) for radix in (1, 2, 4) for groups in (1, 2, 4)]


def slow_attention(layer: nn.Module, x: Tensor) -> Tensor:
    """The paper's figure 2 written out, group by group, with an einsum for each group's sum."""
    radix, groups = layer.radix, layer.cardinality
    splits = layer.bn0(layer.conv(x)).relu().unflatten(1, (radix, groups, -1))  # [B, R, K, C / K, H, W]
    descriptor = splits.sum(1).mean((-2, -1)).flatten(1)[..., None, None]
    hidden = layer.bn1(layer.fc1(descriptor)).relu().flatten(1).unflatten(1, (groups, -1))  # [B, K, d / K]
    outputs = []
    for group in range(groups):
        weight = layer.fc2.weight.flatten(1).unflatten(0, (groups, -1))[group]  # [R * C / K, d / K]
        bias = layer.fc2.bias.unflatten(0, (groups, -1))[group]
        logits = (hidden[:, group] @ weight.T + bias).unflatten(1, (radix, -1))  # [B, R, C / K]
        attention = logits.softmax(1) if radix > 1 else logits.sigmoid()
        outputs.append(torch.einsum('brchw,brc->bchw', splits[:, :, group], attention))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(('radix', 'groups'), KINDS)
@pytest.mark.parametrize('training', [False, True])
def test_parity_with_timm_and_the_paper(radix, groups, training):
    ours, theirs = (
        fill_model(make(32, 48, radix=radix, groups=groups, norm_layer=nn.BatchNorm2d)).double().train(training)
        for make in (timm_sk.SplitAttention, timm.layers.SplitAttn)
    )
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    weights = make_input((3, 48, 9, 7), seed=1).double()
    results = []
    for layer, forward in ((ours, ours), (theirs, theirs), (ours, lambda x: slow_attention(ours, x))):
        layer.zero_grad()
        x = make_input((3, 32, 9, 7)).double().requires_grad_()
        output = forward(x)
        (output * weights).sum().backward()
        results.append([output.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    for expected in results[1:]:
        for a, b in zip(results[0], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('kwargs', [{}, dict(rd_ratio=0.5), dict(rd_channels=24), dict(rd_divisor=32, rd_ratio=0.4)])
def test_width_of_the_attention(kwargs):
    ours, theirs = (make(64, radix=2, **kwargs) for make in (timm_sk.SplitAttention, timm.layers.SplitAttn))
    assert ours.fc1.out_channels == theirs.fc1.out_channels


@pytest.mark.parametrize(
    ('kwargs', 'size'),
    [
        ({}, (9, 7)),
        (dict(stride=2), (5, 4)),
        (dict(dilation=3), (9, 7)),
        (dict(kernel_size=5), (9, 7)),
        (dict(padding=0), (7, 5)),
    ],
)
def test_sizes(kwargs, size):
    assert timm_sk.SplitAttention(32, **kwargs)(make_input((2, 32, 9, 7))).shape == (2, 32, *size)


def test_act_and_norm_layer_of_the_attention():
    default = timm_sk.SplitAttention(32)
    assert type(default.bn0) is type(default.bn1) is nn.BatchNorm2d
    layer = timm_sk.SplitAttention(32, act_layer='silu', norm_layer='groupnorm1')
    assert type(layer.act0) is type(layer.act1) is timm.layers.get_act_layer('silu')
    assert type(layer.bn0) is type(layer.bn1) is timm.layers.GroupNorm1
    assert layer.train()(make_input((1, 32, 5, 5))).isfinite().all()
    bare = timm_sk.SplitAttention(32, norm_layer=None)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bare.modules())
    assert bare.train()(make_input((1, 32, 5, 5))).isfinite().all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(radix=0), r'radix, the number of branches, must be 1 or more, got 0'),
        (dict(groups=3), r'got 3 groups, radix 2, 32 input and 32 output channels: choose a multiple of 6'),
        (dict(in_channels=48, groups=3), r'got 3 groups and a width of 32: pass rd_channels'),
        (dict(rd_channels=0), r'got 1 groups and a width of 0'),
        (dict(radix=4, groups=16), r'choose a multiple of 64 channels'),
        (dict(groups=0), r'got 0 groups'),
        (dict(norm_layer=nn.InstanceNorm2d), r'would turn every pooled value into a constant'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm_sk.SplitAttention(**{'in_channels': 32, **kwargs})


@torch.inference_mode()
def test_radix_major_differs_only_with_groups_and_a_softmax():
    for radix, groups in KINDS:
        ours, lucids = (
            fill_model(make(32, radix=radix, groups=groups)).eval()
            for make in (timm_sk.SplitAttention, RadixMajorSplitAttention)
        )
        x = make_input((2, 32, 9, 7))
        assert torch.equal(ours(x), lucids(x)) == (radix == 1 or groups == 1)


def test_radix_major_with_one_image_in_train_mode():
    layer = fill_model(RadixMajorSplitAttention(32)).train()
    x = make_input((1, 32, 6, 6))
    branches = layer.split(x)
    logits = layer.fc2(layer.bn1.bias.relu()[None, :, None, None]).view(1, 2, 32)
    expected = (torch.stack(list(branches), dim=1) * logits.softmax(1)[..., None, None]).sum(1)
    # the norm magnifies the rounding of the mean by 1 / sqrt(eps)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-3)
