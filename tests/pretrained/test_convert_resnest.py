"""State dicts of the ResNeSt family arrive in timm's layout, which is ours, whole and in the right places."""

import json

import pytest
import timm
import torch
from oracles import FOLDER, load_oracle
from timm.models.resnest import ResNestBottleneck, resnest14d, resnest50d
from timm.models.resnet import ResNet
from torch import Tensor

from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained.convert import (
    convert_gluon,
    convert_lucid,
    convert_mindcv,
    convert_mindcv_resnest,
    convert_pytorchcv,
    convert_resnest,
    recognise,
    to_gluon,
    to_mindcv_resnest,
    to_pytorchcv,
)

Shapes = dict[str, tuple[int, ...]]

# The authors' names: layers, stem width, radix, cardinality, base width.
AUTHORS_NETS = {
    'resnest50': ([3, 4, 6, 3], 32, 2, 1, 64),
    'resnest101': ([3, 4, 23, 3], 64, 2, 1, 64),
    'resnest200': ([3, 24, 36, 3], 64, 2, 1, 64),
    'resnest269': ([3, 30, 48, 8], 64, 2, 1, 64),
    'resnest50_fast_1s1x64d': ([3, 4, 6, 3], 32, 1, 1, 64),
    'resnest50_fast_2s1x64d': ([3, 4, 6, 3], 32, 2, 1, 64),
    'resnest50_fast_4s1x64d': ([3, 4, 6, 3], 32, 4, 1, 64),
    'resnest50_fast_1s2x40d': ([3, 4, 6, 3], 32, 1, 2, 40),
    'resnest50_fast_2s2x40d': ([3, 4, 6, 3], 32, 2, 2, 40),
    'resnest50_fast_4s2x40d': ([3, 4, 6, 3], 32, 4, 2, 40),
    'resnest50_fast_1s4x24d': ([3, 4, 6, 3], 32, 1, 4, 24),
}


def authors_net(name: str) -> dict[str, Tensor]:
    """The state of one of the authors' nets, by timm's class; without memory."""
    layers, stem_width, radix, cardinality, base_width = AUTHORS_NETS[name]
    return ResNet(
        ResNestBottleneck,
        layers,
        stem_type='deep',
        stem_width=stem_width,
        avg_down=True,
        base_width=base_width,
        cardinality=cardinality,
        block_args=dict(radix=radix, avd=True),
        device='meta',
    ).state_dict()


def without_counters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state_dict.items() if not key.endswith('num_batches_tracked')}


def shapes(state_dict: dict[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}


def on_meta(name: str) -> dict[str, Tensor]:
    """The oracle's tensors by upstream's names, without memory."""
    return {key: torch.empty(shape, device='meta') for key, shape, _ in load_oracle(name).facts['tensors']}


def norm(name: str, channels: int, *, counter: bool) -> Shapes:
    leaves = {f'{name}.{leaf}': (channels,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}
    return {**leaves, f'{name}.num_batches_tracked': ()} if counter else leaves


def resnest18() -> Shapes:
    """Two basic blocks per stage: a 3x3 convolution with its norm, then split attention, and no third convolution."""
    expected = {'conv1.0.weight': (32, 3, 3, 3), 'conv1.3.weight': (32, 32, 3, 3), 'conv1.6.weight': (64, 32, 3, 3)}
    for name, channels in (('conv1.1', 32), ('conv1.4', 32), ('bn1', 64)):
        expected |= norm(name, channels, counter=True)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        hidden = max(width // 2, 32)
        for block in (0, 1):
            prefix = f'layer{stage}.{block}'
            expected |= {
                f'{prefix}.conv1.weight': (width, before, 3, 3),
                f'{prefix}.conv2.conv.weight': (2 * width, width // 2, 3, 3),
                f'{prefix}.conv2.fc1.weight': (hidden, width, 1, 1),
                f'{prefix}.conv2.fc1.bias': (hidden,),
                f'{prefix}.conv2.fc2.weight': (2 * width, hidden, 1, 1),
                f'{prefix}.conv2.fc2.bias': (2 * width,),
            }
            expected |= norm(f'{prefix}.bn1', width, counter=True)
            expected |= norm(f'{prefix}.conv2.bn0', 2 * width, counter=True)
            expected |= norm(f'{prefix}.conv2.bn1', hidden, counter=True)
            if before != width:
                expected[f'{prefix}.downsample.1.weight'] = (width, before, 1, 1)
                expected |= norm(f'{prefix}.downsample.2', width, counter=True)
            before = width
    return {**expected, 'fc.weight': (1000, 512), 'fc.bias': (1000,)}


@pytest.mark.parametrize('name', AUTHORS_NETS)
def test_all_nets_of_the_authors(name):
    ours = authors_net(name)
    identity = convert_resnest(ours)
    assert list(identity) == list(ours)
    assert all(identity[key] is tensor for key, tensor in ours.items())
    assert recognise(ours) is convert_resnest

    gluon = to_gluon(ours)
    assert not [key for key in gluon if key.endswith(('num_batches_tracked', '.bn0.gamma'))]
    assert recognise(gluon) is convert_gluon
    back = convert_gluon(gluon)
    assert list(back) == list(without_counters(ours))
    assert all(back[key] is ours[key] for key in back)
    assert list(to_gluon(back)) == list(gluon)


@pytest.mark.parametrize('name', ['resnest50d', 'resnest101e', 'resnest50d_4s2x40d', 'resnest50d_1s4x24d'])
def test_authors_nets_are_timms(name):
    twin = {
        'resnest50d': 'resnest50',
        'resnest101e': 'resnest101',
        'resnest50d_4s2x40d': 'resnest50_fast_4s2x40d',
        'resnest50d_1s4x24d': 'resnest50_fast_1s4x24d',
    }[name]
    assert shapes(authors_net(twin)) == shapes(getattr(timm.models.resnest, name)(device='meta').state_dict())


@pytest.mark.parametrize('options', [dict(avg_down=False), dict(stem_type='')], ids=['no pool', 'plain stem'])
def test_options_of_the_class_have_a_place(options):
    ours = resnest14d(device='meta', **options).state_dict()
    assert list(convert_resnest(ours)) == list(ours)


@pytest.mark.parametrize(
    ('name', 'convert', 'build'),
    [
        ('gluon_resnest50', convert_gluon, resnest50d),
        ('mindcv_resnest50', convert_mindcv_resnest, resnest50d),
        ('pytorchcv_resnestabc14', convert_pytorchcv, resnest14d),
    ],
)
def test_every_tensor_arrives_and_none_is_missing(name, convert, build):
    converted = convert(on_meta(name))
    expected = build(device='meta').state_dict()
    has_counters = name.startswith('pytorchcv')
    assert shapes(converted) == shapes(expected if has_counters else without_counters(expected))


def test_resnesta18_has_the_basic_blocks_of_resnest18():
    assert shapes(convert_pytorchcv(on_meta('pytorchcv_resnesta18'))) == resnest18()


def test_lucids_is_timms_without_the_norm_after_the_stem_and_the_pool_of_the_downsample():
    reference = without_counters(resnest50d(device='meta', avg_down=False).state_dict())
    expected = {key: shape for key, shape in shapes(reference).items() if not key.startswith('bn1.')}
    converted = convert_lucid(on_meta('lucid_resnest_50'))
    assert shapes(converted) == expected
    assert list(convert_resnest(converted)) == list(converted)


@pytest.mark.parametrize(
    ('name', 'to_theirs', 'build'),
    [
        ('gluon_resnest50', to_gluon, resnest50d),
        ('mindcv_resnest50', to_mindcv_resnest, resnest50d),
        ('pytorchcv_resnestabc14', to_pytorchcv, resnest14d),
    ],
)
def test_timms_state_has_upstreams_names_on_the_way_back(name, to_theirs, build):
    assert shapes(to_theirs(build(device='meta').state_dict())) == shapes(on_meta(name))


def test_gluons_order_is_timms():
    facts = json.loads((FOLDER / 'gluon_resnest50.json').read_text())
    assert list(to_gluon(resnest50d(device='meta').state_dict())) == [key for key, _, _ in facts['tensors']]


@pytest.mark.parametrize(
    ('name', 'convert', 'build', 'tolerance'),
    [
        ('gluon_resnest50', convert_gluon, resnest50d, 1e-4),
        ('pytorchcv_resnestabc14', convert_pytorchcv, resnest14d, 3e-5),
    ],
)
@torch.inference_mode()
def test_timms_net_answers_as_upstreams(name, convert, build, tolerance, record_property):
    oracle = load_oracle(name)
    model = build().eval()
    missing, unexpected = model.load_state_dict(convert(oracle.weights), strict=False)
    assert not unexpected
    assert all(key.endswith('num_batches_tracked') for key in missing)
    for tag, x in oracle.inputs.items():
        distance = oracle.distance(tag, model(x))
        record_property(tag, distance)
        assert distance <= tolerance, tag


def test_mindcvs_two_families_are_not_taken_for_each_other():
    with pytest.raises(MismatchedCheckpointError, match=r'"conv1\.0\.weight" is no key of a MindCV SK-ResNet'):
        convert_mindcv(on_meta('mindcv_resnest50'))
    with pytest.raises(MismatchedCheckpointError, match=r'"conv1\.weight" is no key of a MindCV ResNeSt'):
        convert_mindcv_resnest(on_meta('mindcv_skresnet50'))
