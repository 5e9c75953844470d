"""The classes of Lucid's documents: signatures, values and wrong arguments."""

import inspect
import re
from functools import partial
from pathlib import Path

import pytest
import timm
import timm.layers
import timm.models
import timm.models.resnest
import torch
import torch.nn.functional as F
from oracles import load_oracle
from random_weights import fill_model, make_input
from tiers import deep_except
from torch import Tensor, nn
from variants import LUCID_NAMES

from timm_sk import lucid
from timm_sk.pretrained import to_our_layout

TOLERANCE = 1e-4  # of the output's standard deviation

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'lucid.md'
EXAMPLES = re.findall(r'^```python\n(.*?)^```', DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
PARAMETERS = dict(
    sk_resnet_18=25_647_368, sk_resnet_34=45_895_512, sk_resnet_50=57_073_368, sk_resnext_50_32x4d=29_274_760
)


def small_net(*args: object, **kwargs: object) -> lucid.SKNet:
    """A net of one block per stage with few channels."""
    return lucid.SKNet(lucid.SKBottleneck, [1, 1, 1, 1], 5, *args, **{'channels': (16, 16, 16, 32), **kwargs})


def stacked_selection(layer: lucid.SelectiveKernel, x: Tensor, paddings: list[int], stride: int, groups: int) -> Tensor:
    """The layer written out, with stacked branches."""
    convolve = [
        F.conv2d(x, path.weight, stride=stride, padding=padding, groups=groups)
        for path, padding in zip(layer.paths, paddings, strict=True)
    ]
    branches = torch.stack(convolve, dim=1)  # [B, M, C, H, W]
    hidden = layer.attn.bn(layer.attn.fc_reduce(branches.sum(1).mean((2, 3), keepdim=True))).relu()
    logits = layer.attn.fc_select(hidden).view(len(x), len(paddings), -1)  # [B, M, 1] or [B, M, C]
    return (branches * logits.softmax(1)[..., None, None]).sum(1)


ORACLES = {
    'lucid_selective_kernel_1': lambda: lucid.SelectiveKernel(16, 16, kernel_sizes=[3, 5]),
    'lucid_selective_kernel_3': lambda: lucid.SelectiveKernel(32, 32, kernel_sizes=[1, 3], groups=32, reduction=8),
    'lucid_sk_resnet_18': lucid.sk_resnet_18,
    'lucid_sk_resnet_50': lucid.sk_resnet_50,
    'lucid_resnest_50': lambda: lucid.ResNeSt(lucid.ResNeStBottleneck, [3, 4, 6, 3]),
}


@pytest.mark.parametrize('name', deep_except([name for name in ORACLES if name != 'lucid_sk_resnet_50'], ORACLES))
def test_oracle(name, record_property):
    oracle = load_oracle(name)
    oracle.check(ORACLES[name](), to_our_layout(oracle.weights), TOLERANCE, record_property)


RESNESTS = dict(
    resnest_14=([1, 1, 1, 1], 64, 32, 1, 2),
    resnest_26=([2, 2, 2, 2], 64, 32, 1, 2),
    resnest_50=([3, 4, 6, 3], 64, 32, 1, 2),
    resnest_101=([3, 4, 23, 3], 64, 64, 1, 2),
    resnest_200=([3, 24, 36, 3], 64, 64, 1, 2),
    resnest_269=([3, 30, 48, 8], 64, 64, 1, 2),
    resnest_50_4s2x40d=([3, 4, 6, 3], 40, 32, 2, 4),
    resnest_50_1s4x24d=([3, 4, 6, 3], 24, 32, 4, 1),
)


@pytest.mark.parametrize('name', RESNESTS)
def test_factories_of_resnest(name):
    model = getattr(lucid, name)(7, device='meta')
    depths = [len(stage) for stage in model.layers]
    assert (depths, model.base_width, model.stem_width, model.cardinality, model.radix) == RESNESTS[name]
    unit = model.layer2[0].conv2
    assert (unit.radix, unit.cardinality, unit.conv.stride) == (model.radix, model.cardinality, (1, 1))
    assert isinstance(model.layer2[0].avd_last, nn.AvgPool2d)
    assert (model.conv1[0].out_channels, model.conv1[6].out_channels) == (model.stem_width, 2 * model.stem_width)
    assert model.fc.out_features == 7
    assert model.avd


@pytest.mark.parametrize(
    ('kwargs', 'width'), [(dict(base_width=135, radix=1), 33), (dict(radix=1), 32), (dict(radix=4, cardinality=2), 128)]
)
def test_width_of_resnests_attention(kwargs, width):
    model = lucid.ResNeSt(lucid.ResNeStBottleneck, [1, 1, 1, 1], device='meta', **kwargs)
    assert model.layer1[0].conv2.fc1.out_channels == width


def test_arguments_of_resnest():
    model = lucid.ResNeSt(
        lucid._ResNeStBottleneck, [1, 1, 1, 1], 5, 32, 16, 2, 4, False, in_channels=1, channels=[64] * 4
    )
    assert (model.base_width, model.stem_width, model.cardinality, model.radix, model.avd) == (32, 16, 2, 4, False)
    assert model(make_input((2, 1, 64, 64))).shape == (2, 5)
    assert not any(isinstance(module, nn.AvgPool2d) for module in model.modules())
    with pytest.raises(TypeError, match='ResNeSt takes no argument stem_type'):
        lucid.ResNeSt(lucid.ResNeStBottleneck, [1, 1, 1, 1], stem_type='')


@pytest.mark.parametrize('name', LUCID_NAMES)
def test_factories_build_the_registered_nets(name):
    ours, registered = getattr(lucid, name)(device='meta'), timm.create_model(name, device='meta')
    assert type(ours) is lucid.SKNet
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]
    shapes, expected = ([(k, v.shape) for k, v in net.state_dict().items()] for net in (ours, registered))
    assert shapes == expected
    assert f'{PARAMETERS[name]:,}' in DOCUMENT.read_text()
    ours, registered = (
        fill_model(make(channels=[32] * 4)).eval() for make in (getattr(lucid, name), partial(timm.create_model, name))
    )
    x = make_input((2, 3, 64, 64))
    assert torch.equal(ours(x), registered(x))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('SelectiveKernel', 'in_channels, out_channels, kernel_sizes, stride=1, padding=None, groups=1, reduction=16'),
        ('SKNet', 'block, layers, num_classes=1000, kernel_sizes=[3, 5], base_width=64, cardinality=1, **resnet_args)'),
        (
            'ResNeSt',
            'block, layers, num_classes=1000, base_width=64, stem_width=32, cardinality=1, radix=2, avd=True, '
            '**resnet_args)',
        ),
        *((name, 'num_classes=1000, **kwargs)') for name in (*RESNESTS, *LUCID_NAMES)),
    ],
)
def test_signatures(name, expected):
    parameters = inspect.signature(getattr(lucid, name)).parameters.values()
    bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
    assert str(bare).startswith(f'({expected}')


@pytest.mark.deep
@pytest.mark.parametrize('example', EXAMPLES)
def test_examples_of_the_document(example, capsys):
    assert len(EXAMPLES) == 6
    exec(compile(example, str(DOCUMENT), 'exec'), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r'^print\(.*\)  # (.*)$', example, re.MULTILINE)


@pytest.mark.parametrize('select', ['branch', 'channel'])
@pytest.mark.parametrize(
    ('kernel_sizes', 'stride', 'padding', 'groups', 'expected_paddings'),
    [
        ([3, 5], 1, None, 1, [1, 2]),
        ([1, 7, 3], 2, None, 4, [0, 3, 1]),
        ([2, 4], 1, None, 1, [1, 2]),
        ([2, 4], 1, 'same', 1, [0, 1]),
        ([3, 5], 2, 'same', 1, [1, 2]),
        ([3, 3], 1, 0, 8, [0, 0]),
        ([5, 5], 2, 3, 1, [3, 3]),
        ([4, 4], 1, 'valid', 1, [0, 0]),
        ([5], 1, 'valid', 1, [0]),
    ],
)
def test_padding_stride_groups_and_selection(kernel_sizes, stride, padding, groups, expected_paddings, select):
    layer = fill_model(lucid.SelectiveKernel(8, 16, kernel_sizes, stride, padding, groups, 4, select=select))
    x = make_input((3, 8, 9, 12))
    for training in (False, True):
        layer.train(training)
        torch.testing.assert_close(
            layer(x), stacked_selection(layer, x, expected_paddings, stride, groups), rtol=0, atol=2e-6
        )
    assert layer.attn.fc_reduce.out_channels == 16 // 4
    assert layer.attn.fc_select.out_channels == len(kernel_sizes) * (16 if select == 'channel' else 1)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(kernel_sizes=[3, 5], padding=1), r'got \[2, 16, 7, 10\] for branch 1 and \[2, 16, 9, 12\] for branch 0'),
        (dict(kernel_sizes=[3, 5], padding='valid'), r'got \[2, 16, 5, 8\] for branch 1'),
        (dict(kernel_sizes=[3, 4]), r'got \[2, 16, 10, 13\] for branch 1'),
        (dict(kernel_sizes=[3, 4, 3], padding='same'), r'got \[2, 16, 8, 11\] for branch 1'),
    ],
)
def test_branches_of_different_sizes(kwargs, message):
    with pytest.raises(ValueError, match=message):
        lucid.SelectiveKernel(8, 16, **kwargs)(make_input((2, 8, 9, 12)))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(kernel_sizes=[]), r'one entry per branch, got \[\]'),
        (dict(kernel_sizes=3), r'one entry per branch, got 3'),
        (dict(kernel_sizes=[3, 0]), r'from 1, got 0 in \[3, 0\]'),
        (dict(kernel_sizes=[3, 2.5]), r'from 1, got 2\.5'),
        (dict(padding='full'), r"'same', 'valid' or a whole number from 0, got 'full'"),
        (dict(padding=-1), r'from 0, got -1'),
        (dict(groups=3), r'got 3 groups for 8 input and 16 output channels'),
        (dict(groups=0), r'got 0 groups'),
        (dict(reduction=17), r'between 1 and out_channels, got 17 for 16'),
        (dict(select='both'), r"'branch' or 'channel', got 'both'"),
    ],
)
def test_wrong_arguments_of_the_layer(kwargs, message):
    with pytest.raises(ValueError, match=message):
        lucid.SelectiveKernel(**{'in_channels': 8, 'out_channels': 16, 'kernel_sizes': [3, 5], **kwargs})


@pytest.mark.parametrize('select', ['branch', 'channel'])
def test_batch_of_one_in_train_mode(select):
    layer = fill_model(lucid.SelectiveKernel(8, 16, [3, 5], reduction=2, select=select)).train()
    x = make_input((1, 8, 6, 6))
    logits = layer.attn.fc_select(layer.attn.bn.bias.relu()[None, :, None, None]).view(1, 2, -1, 1, 1)
    branches = torch.stack([path(x) for path in layer.paths], dim=1)
    # the norm magnifies the rounding of the mean by 1 / sqrt(eps)
    torch.testing.assert_close(layer(x), (branches * logits.softmax(1)).sum(1), rtol=0, atol=1e-4)
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


def test_attributes_of_the_net():
    model = small_net([3, 7], 32, 2)
    assert (model.kernel_sizes, model.base_width, model.cardinality) == ([3, 7], 32, 2)
    assert model.layers == [model.layer1, model.layer2, model.layer3, model.layer4]
    unit = model.layer4[0].conv2
    assert [path.kernel_size for path in unit.paths] == [(3, 3), (7, 7)]
    assert (unit.paths[0].groups, unit.out_channels) == (2, 32 * 32 // 64 * 2)
    assert inspect.signature(lucid.SKNet).parameters['kernel_sizes'].default == [3, 5]


def test_arguments_of_the_units():
    model = small_net(block_args=dict(sk_kwargs=dict(select='channel', reduction=8)), act_layer='silu')
    assert model.layer4[0].conv2.attn.fc_select.out_channels == 2 * 32
    assert model.layer4[0].conv2.attn.fc_reduce.out_channels == 32 // 8
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert small_net(in_channels=1)(make_input((2, 1, 64, 64))).shape == (2, 5)


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(stem_wdith=32), TypeError, 'takes no argument stem_wdith'),
        (dict(self_attention=True, dilate=2), TypeError, 'takes no argument dilate, self_attention'),
        (dict(in_channels=3, in_chans=3), ValueError, 'got both'),
        (dict(kernel_sizes=[3, 0]), ValueError, 'got 0'),
    ],
)
def test_wrong_arguments_of_the_net(kwargs, error, message):
    with pytest.raises(error, match=message):
        small_net(**kwargs)
    with pytest.raises(error, match=message):
        lucid.sk_resnet_18(10, **kwargs)


@torch.inference_mode()
def test_deep_stem():
    model = fill_model(small_net(stem_type='deep', stem_width=8)).eval()
    x = make_input((2, 3, 64, 64))
    conv1, norm1, _, conv2, norm2, _, conv3 = model.conv1
    stem = conv3(norm2(conv2(norm1(conv1(x)).relu())).relu())
    pooled = F.max_pool2d(F.pad(stem, (1, 1, 1, 1)), 3, stride=2)
    assert not torch.equal(pooled, F.max_pool2d(stem, 3, stride=2, padding=1))
    expected = model.fc(model.layer4(model.layer3(model.layer2(model.layer1(pooled)))).mean((2, 3)))
    torch.testing.assert_close(model(x), expected)


@torch.inference_mode()
def test_avg_down():
    """Lucid 2 pools over 3x3 pixels before the convolution of every shortcut, also where the stride is 1."""
    model = fill_model(small_net(avg_down=True, channels=(32, 16, 16, 32))).eval()
    x = make_input((2, 64, 17, 15))
    for stage, stride in ((model.layer1, 1), (model.layer2, 2)):
        pool, conv, norm = stage[0].downsample
        pooled = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride)  # zeros are counted
        torch.testing.assert_close(norm(conv(pool(x))), norm(conv(pooled)))
        x = stage(x)
    bottlenecks = lucid.sk_resnet_50(5, avg_down=True, device='meta')
    pools = [stage[0].downsample[0] for stage in bottlenecks.layers]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 1, 1), *[(3, 2, 1)] * 3]
    resnest = lucid.resnest_14(5, avg_down=True, device='meta')
    assert [stage[0].downsample[0].kernel_size for stage in resnest.layers] == [3] * 4
