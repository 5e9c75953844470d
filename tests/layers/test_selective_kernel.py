"""The layer alone: parity with timm's, extensions, wrong arguments."""

import pytest
import timm.layers
import torch
from random_weights import fill_model, make_input
from timm_pair import run_step

from timm_sk import SelectiveKernel
from timm_sk.models.sknet import StackedSelectiveKernel

# Arguments that timm's layer takes as well.
SHARED = [
    dict(out_channels=32),
    dict(stride=2, dilation=2, split_input=False),
    dict(out_channels=32, groups=4, rd_ratio=1 / 4, rd_divisor=4),
    dict(kernel_size=3, split_input=False),
    dict(kernel_size=[3, 5, 7, 9], keep_3x3=False),
    dict(kernel_size=[5], rd_channels=5),
    dict(kernel_size=[3, 3], aa_layer=timm.layers.BlurPool2d, stride=2),
]


@pytest.mark.parametrize('kwargs', SHARED, ids=str)
@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_timm_parity(kwargs, train):
    ours = fill_model(SelectiveKernel(16, **kwargs)).train(train)
    theirs = fill_model(timm.layers.SelectiveKernel(16, **kwargs)).train(train)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.double(), theirs.double()
    results = [run_step(layer, make_input((3, 16, 11, 9)).double()) for layer in (ours, theirs)]
    for key, expected in results[1].items():
        if 'grad' in key and expected.abs().max() < 1e-10:  # the attention's of one branch: its weight is always 1
            assert kwargs.get('kernel_size') == [5]
            assert results[0][key].abs().max() < 1e-10
        else:
            assert (results[0][key] - expected).abs().max() <= 1e-11 * expected.abs().max(), key


def test_kernel_sizes_may_be_any_sequence():
    layer = SelectiveKernel(16, kernel_size=(3, 5, 5, 7), out_channels=8)
    assert [path.conv.dilation for path in layer.paths] == [(1, 1), (2, 2), (2, 2), (3, 3)]
    assert [path.conv.in_channels for path in layer.paths] == [4] * 4


def test_without_attention_the_branches_are_summed():
    layer = fill_model(SelectiveKernel(16, kernel_size=[3, 5, 7], split_input=False, attention=False))
    x = make_input((2, 16, 8, 8))
    torch.testing.assert_close(layer(x), layer.paths[0](x) + layer.paths[1](x) + layer.paths[2](x))
    assert not [key for key in layer.state_dict() if 'attn' in key]


def test_receptive_field_of_stacked_kernels():
    layer = StackedSelectiveKernel(4, kernel_size=[3, 5, 7], split_input=False, stride=2, act_layer='identity').eval()
    assert [len(path) for path in layer.paths] == [1, 2, 3]
    for path, size in zip(layer.paths, [3, 5, 7], strict=True):
        x = torch.zeros(1, 4, 16, 16, requires_grad=True)
        path(x)[0, 0, 4, 4].backward()
        reached = x.grad.abs().sum((0, 1)).nonzero()
        assert (reached.amax(0) - reached.amin(0) + 1).tolist() == [size, size]


def test_more_groups_than_outputs():
    assert SelectiveKernel(16, 8, groups=32, split_input=False).paths[0].conv.groups == 8


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=15), r'15 channels for 2 branches.*split_input=False'),
        (dict(in_channels=16, kernel_size=[3, 4]), r'odd integer, 3 or more; got 4 in \[3, 4\]'),
        (dict(in_channels=16, kernel_size=1), r'odd integer, 3 or more; got 1'),
        (dict(in_channels=16, kernel_size=[3, 5, 2, 3]), r'got 2 in \[3, 5, 2, 3\]'),
        (dict(in_channels=16, kernel_size=[3, 5.0]), r'got 5.0 in \[3, 5.0\]'),
        (dict(in_channels=16, groups=0), r'integers of at least 1, got 0'),
        (dict(in_channels=16, groups=-2), r'integers of at least 1, got -2'),
        (dict(in_channels=16, groups=[1, 2, 4]), r'got \[1, 2, 4\] for 2 branches'),
        (dict(in_channels=16, kernel_size=[]), r'one entry per branch, got none'),
        (dict(in_channels=16, groups=3), r'3 groups for 8 input and 16 output channels'),
        (dict(in_channels=16, out_channels=20, groups=8), r'8 groups for 8 input and 20 output channels'),
        (dict(in_channels=32, out_channels=32, rd_channels=32, norm_layer='groupnorm'), r'into a constant.*groupnorm1'),
        (dict(in_channels=32, out_channels=32, norm_layer=timm.layers.GroupNorm), r'refuses the attention.*8 channels'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SelectiveKernel(**{'out_channels': 16, **kwargs})


def test_batch_of_one_in_train_mode():
    layer = SelectiveKernel(16)
    x = make_input((1, 16, 8, 8))
    with pytest.raises(ValueError, match=r'at least 2 images in train mode, got a batch of 1.*call eval\(\)'):
        layer(x)
    layer.attn.bn.eval()
    assert layer(x).isfinite().all()
    assert layer.eval()(x).isfinite().all()
    for norm_layer in ('groupnorm1', 'layernorm2d'):
        assert SelectiveKernel(16, norm_layer=norm_layer)(x).isfinite().all()
