"""Every layout is one table, exact in both directions, and recognized by its signature."""

import pytest
import timm
import timm.models
import torch
from oracles import load_oracle
from torch import Tensor

from timm_sk import lucid
from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained import to_our_layout
from timm_sk.pretrained.convert import LAYOUTS, recognize
from timm_sk.pretrained.convert.layout import WEIGHT, Layout

ORACLES = {
    'caffe_sknet50': 'Caffe SKNet',
    'gluon_resnest50': 'Gluon ResNeSt',
    'holocron_sknet50': 'Holocron SKNet',
    'pytorchinsight_sk_resnet50': 'PytorchInsight SK-ResNet',
    'lucid_selective_kernel_1': 'Lucid SelectiveKernel',
    'lucid_selective_kernel_3': 'Lucid SelectiveKernel',
    'lucid_sk_resnet_18': 'Lucid SKNet',
    'lucid_sk_resnet_50': 'Lucid SKNet',
    'lucid_resnest_50': 'Lucid ResNeSt',
    'mindcv_skresnet18': 'MindCV SK-ResNet',
    'mindcv_skresnet50': 'MindCV SK-ResNet',
    'mindcv_skresnext50_32x4d': 'MindCV SK-ResNet',
    'mindcv_resnest50': 'MindCV ResNeSt',
    'pytorchcv_resnesta18': 'pytorchcv ResNeSt',
    'pytorchcv_resnestabc14': 'pytorchcv ResNeSt',
    'pytorchcv_sknet50': 'pytorchcv SKNet',
    'gluoncv2_resnesta18': 'gluoncv2 ResNeSt',
    'gluoncv2_resnestabc14': 'gluoncv2 ResNeSt',
}
PARTS_ORACLES = {
    'mindspore_resnest50': 'MindSpore Hub ResNeSt',
    'paddle_resnest50': 'PaddleClas ResNeSt',
    'syt2_sknet50': 'syt2 SKNet',
}
each_oracle = pytest.mark.parametrize('oracle', ORACLES)


def empty_state_dict(oracle: str) -> dict[str, Tensor]:
    """Uninitialized tensors by upstream's names."""
    tensors = load_oracle(oracle).facts['tensors']
    state_dict = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in tensors}
    if oracle.startswith('lucid') and 'fc.bias' in state_dict:
        state_dict['fc.bias'] = state_dict['fc.bias'][None]  # [1, classes] in Lucid, flat in the oracle's list
    return state_dict


def identities(state_dict: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    """Names, shapes and memory of the tensors, in order."""
    return [(key, tuple(tensor.shape), tensor.data_ptr()) for key, tensor in state_dict.items()]


def without_counters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state_dict.items() if not key.endswith('num_batches_tracked')}


@each_oracle
def test_round_trip(oracle):
    layout, theirs = LAYOUTS[ORACLES[oracle]], empty_state_dict(oracle)
    ours = layout.to_ours(theirs)
    assert list(ours) != list(theirs)
    assert identities(layout.to_theirs(ours)) == identities(theirs)
    assert identities(layout.to_ours(layout.to_theirs(ours))) == identities(ours)


@pytest.mark.all_cases
@pytest.mark.parametrize('oracle', PARTS_ORACLES)
def test_round_trip_of_parts(oracle):
    layout, theirs = LAYOUTS[PARTS_ORACLES[oracle]], load_oracle(oracle).weights
    assert recognize(theirs) is layout
    ours = layout.to_ours(theirs)
    back = layout.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in back.items())
    reordered = layout.to_ours(dict(reversed(theirs.items())))
    assert ours.keys() == reordered.keys()
    assert all(torch.equal(tensor, reordered[key]) for key, tensor in ours.items())
    with pytest.raises(MismatchedCheckpointError, match=f'"conv9.weight" is not a key of the layout {layout.name}'):
        layout.to_ours({**theirs, 'conv9.weight': torch.zeros(1)})


@pytest.mark.parametrize('shape', [(), (3, 3), (7,)])
def test_parts_of_other_shapes(shape):
    """A part of another shape, and one without dimensions, are refused, or make a tensor of another shape."""
    name = 'stage_1.0.conv2.fcs.{}.bias'
    parts = {name.format(0): torch.zeros(shape), name.format(1): torch.zeros(7)}
    if shape != (7,):
        with pytest.raises(
            MismatchedCheckpointError, match=r'parts of "layer1\.0\.conv2\.attn\.fc_select\.bias" do not fit'
        ):
            LAYOUTS['syt2 SKNet'].to_ours(parts)
        return
    assert [tensor.shape for tensor in LAYOUTS['syt2 SKNet'].to_ours(parts).values()] == [(14,)]


@pytest.mark.parametrize(
    ('name', 'prefix'),
    [('Detectron2 ResNeSt', 'backbone.bottom_up.'), ('mmdetection ResNeSt', 'backbone.'), (None, 'pretrained.')],
)
@pytest.mark.parametrize('arch', ['resnest50d', 'resnest269e'])
def test_backbones(arch, name, prefix):
    ours = timm.create_model(arch, num_classes=0, device='meta').state_dict()
    theirs = LAYOUTS[name].to_theirs(ours) if name else ours
    assert recognize(theirs) is LAYOUTS.get(name)
    others = {'neck.conv.weight': torch.zeros(1), 'head.fc_cls.weight': torch.zeros(1)}
    detector = {**others, **{prefix + key: tensor for key, tensor in theirs.items()}}
    for state_dict in (theirs, detector):
        back = to_our_layout(state_dict, arch=arch)
        assert list(back) == list(ours)
        assert all(back[key] is ours[key] for key in ours)


def test_deformable_backbone():
    ours = timm.create_model('resnest50d', num_classes=0, device='meta').state_dict()
    theirs = {f'backbone.bottom_up.{key}': t for key, t in LAYOUTS['Detectron2 ResNeSt'].to_theirs(ours).items()}
    theirs['backbone.bottom_up.res3.0.conv2_offset.weight'] = torch.zeros(1)
    with pytest.raises(MismatchedCheckpointError, match=r'"res3\.0\.conv2_offset\.weight" is not a key of'):
        to_our_layout(theirs)


@pytest.mark.parametrize('arch', ['resnest50d', 'resnest269e'])
def test_mmpretrain(arch):
    ours = timm.create_model(arch, device='meta').state_dict()
    theirs = LAYOUTS['mmpretrain ResNeSt'].to_theirs(ours)
    assert {'stem.2.bn.weight', 'layer1.0.downsample.0.weight', 'layer2.0.downsample.1.weight'} <= theirs.keys()
    assert 'layer1.0.downsample.2.weight' not in theirs
    prefixed = {key if key.startswith('head.') else f'backbone.{key}': tensor for key, tensor in theirs.items()}
    back = to_our_layout(prefixed, arch=arch)
    assert back.keys() == ours.keys()
    assert all(back[key] is ours[key] for key in ours)


@each_oracle
def test_counters_of_batches(oracle):
    """They are converted back only where upstream has them."""
    layout = LAYOUTS[ORACLES[oracle]]
    ours = {}
    for key, tensor in layout.to_ours(empty_state_dict(oracle)).items():
        ours[key] = tensor
        if key.endswith('.running_var'):
            ours[key.replace('.running_var', '.num_batches_tracked')] = torch.zeros((), dtype=torch.int64)
    assert len(without_counters(ours)) < len(ours)
    has_none = layout.name.startswith(('Caffe', 'Gluon', 'gluoncv2', 'Lucid', 'MindCV'))
    assert list(layout.to_ours(layout.to_theirs(ours))) == list(without_counters(ours) if has_none else ours)


@each_oracle
def test_recognize(oracle):
    theirs = empty_state_dict(oracle)
    assert recognize(theirs) is LAYOUTS[ORACLES[oracle]]
    assert [name for name, layout in LAYOUTS.items() if {*layout.signature} <= theirs.keys()] == [ORACLES[oracle]]
    assert recognize(LAYOUTS[ORACLES[oracle]].to_ours(theirs)) is None


@pytest.mark.parametrize(
    'arch', ['skresnet18', 'skresnext50_32x4d', 'sknet50', 'sk_resnet_18', 'resnet50', 'sknet_atto', 'resnest50d']
)
def test_recognize_our_layout(arch):
    assert recognize(timm.create_model(arch, device='meta').state_dict()) is None


@pytest.mark.parametrize('name', LAYOUTS)
def test_signature_belongs_to_one_layout(name):
    state_dict = {key: torch.zeros(1) for key in LAYOUTS[name].signature}
    assert recognize(state_dict) is LAYOUTS[name]
    assert len(LAYOUTS[name].to_ours(state_dict)) == len(state_dict)
    for other, layout in LAYOUTS.items():
        if other != name and not (name.startswith('Lucid SKNet') and other.startswith('Lucid SKNet')):
            with pytest.raises(MismatchedCheckpointError, match=f'is not a key of the layout {other}'):
                layout.to_ours(state_dict)


@each_oracle
def test_first_unknown_key_is_named(oracle):
    layout, theirs = LAYOUTS[ORACLES[oracle]], empty_state_dict(oracle)
    unknown = {'layer1.0.conv9.weight': torch.zeros(1), 'fc.gain': torch.zeros(1)}
    with pytest.raises(MismatchedCheckpointError, match=r'^"layer1\.0\.conv9\.weight" is not a key of the layout'):
        layout.to_ours({**theirs, **unknown})
    with pytest.raises(MismatchedCheckpointError, match=r'^"layer1\.0\.conv9\.weight" has no counterpart in the'):
        layout.to_theirs({**layout.to_ours(theirs), **unknown})


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('Caffe SKNet', 'conv1_1/1x1_reduce:0'),  # stages count from 2
        ('Caffe SKNet', 'conv2_0/1x1_reduce:0'),  # blocks from 1
        ('Caffe SKNet', 'conv6_1/1x1_reduce:0'),
        ('Caffe SKNet', 'conv2_01/1x1_reduce:0'),
        ('Caffe SKNet', 'conv2_1/1x1_reduce:1'),
        ('Caffe SKNet', 'conv2_1/1x1_reduce/bn:4'),
        ('Caffe SKNet', 'conv2_1/B_fc2/bn:0'),
        ('Holocron SKNet', 'features.3.0.conv.0.weight'),
        ('Holocron SKNet', 'features.8.0.conv.0.weight'),
        ('PytorchInsight SK-ResNet', 'layer1.0.conv1.bias'),
        ('PytorchInsight SK-ResNet', 'layer0.0.conv1.weight'),
        ('PaddleClas ResNeSt', 'layer1.layer2_bottleneck_0.conv4.weight'),
        ('PaddleClas ResNeSt', 'layer1.layer1_bottleneck_0.conv2.conv2._conv.bias'),
        ('syt2 SKNet', 'stage_1.0.conv2.fcs.0.0.weight'),
        ('syt2 SKNet', f'stage_1.0.conv2.fcs.{"9" * 5000}.weight'),
        ('pytorchcv ResNeSt', 'features.stage1.unit0.body.conv1.conv.weight'),
        ('pytorchcv ResNeSt', 'xfeatures.stage1.unit1.body.conv1.conv.weight'),
        ('pytorchcv ResNeSt', 'features.stage1.unit1.body.conv1.conv.weight\n'),
        ('MindCV SK-ResNet', 'layer1.0.conv1.0.gamma'),
        ('MindCV SK-ResNet', f'layer1.{"9" * 5000}.conv1.0.weight'),
        ('MindCV ResNeSt', 'classifier.weight'),
        ('Gluon ResNeSt', 'layer1.0.conv2.bn0.gamma'),
        ('Gluon ResNeSt', 'bn1.num_batches_tracked'),
        ('Lucid 3 ResNeSt', 'layer1.0.conv2.weight'),
        ('Lucid 3 ResNeSt', 'module.bn1.weight'),
        ('Lucid SKNet', 'layer1.0.conv2.paths.0.weight'),
        ('Lucid SKNet', 'stem.2.weight'),
        ('Lucid SKNet', 'conv1.weight'),
        ('Lucid SKNet', 'layer1.x.bn2.bias'),
    ],
)
def test_unknown_key(name, key):
    with pytest.raises(MismatchedCheckpointError, match='is not a key of the layout'):
        LAYOUTS[name].to_ours({key: torch.zeros(1)})


def test_two_keys_become_one():
    net = [('a{path}', 'x{path}', WEIGHT), ('b', 'x0', WEIGHT), ('a1', 'y', WEIGHT)]
    layout = Layout('test', signature=(), net=net)
    assert list(layout.to_ours({'a0.weight': torch.zeros(1), 'a2.weight': torch.zeros(1)})) == [
        'x0.weight',
        'x2.weight',
    ]
    with pytest.raises(MismatchedCheckpointError, match=r'Two keys become "x0\.weight", one of them "b\.weight"'):
        layout.to_ours({'a0.weight': torch.zeros(1), 'b.weight': torch.zeros(1)})
    with pytest.raises(MismatchedCheckpointError, match=r'Two keys become "a1\.weight", one of them "y\.weight"'):
        layout.to_theirs({'x1.weight': torch.zeros(1), 'y.weight': torch.zeros(1)})


@pytest.mark.parametrize(
    ('name', 'theirs', 'ours', 'shape'),
    [
        ('Caffe SKNet', 'conv2_1/B_fc1/bn:3', 'layer1.0.conv2.attn.bn.running_var', (1, 4, 1, 1)),
        ('Lucid SKNet', 'fc.bias', 'fc.bias', (1, 7)),
    ],
)
def test_reshaped_tensors(name, theirs, ours, shape):
    tensor = torch.randn(shape)
    converted = LAYOUTS[name].to_ours({theirs: tensor})
    assert torch.equal(converted[ours], tensor.flatten())
    assert torch.equal(LAYOUTS[name].to_theirs(converted)[theirs], tensor)


@pytest.mark.parametrize(
    ('oracle', 'arch'),
    [('gluon_resnest50', 'resnest50d'), ('mindcv_resnest50', 'resnest50d'), ('pytorchcv_resnestabc14', 'resnest14d')],
)
def test_upstream_names_of_timms_nets(oracle, arch):
    ours = getattr(timm.models, arch)(device='meta').state_dict()
    theirs = {key: tensor.shape for key, tensor in LAYOUTS[ORACLES[oracle]].to_theirs(ours).items()}
    expected = {key: tensor.shape for key, tensor in empty_state_dict(oracle).items()}
    assert theirs == expected
    if oracle.startswith('gluon'):
        assert list(theirs) == list(expected)


@pytest.mark.parametrize('options', [dict(stem_type='deep'), dict(avg_down=False), dict(avg_down=True)], ids=str)
def test_lucid_options(options):
    ours = lucid.SKNet(lucid.SKBasicBlock, [1, 1, 1, 1], device='meta', **options).state_dict()
    if 'stem_type' in options:
        layout = LAYOUTS['Lucid SKNet with a deep stem']
        theirs = layout.to_theirs(ours)
        assert 'stem.6.weight' in theirs
    else:
        layout = LAYOUTS['Lucid SKNet']
        theirs = layout.to_theirs(ours)
        assert f'layer2.0.downsample.{int(options["avg_down"])}.weight' in theirs
    assert recognize(theirs) is layout
    assert list(layout.to_ours(theirs)) == list(without_counters(ours))


@pytest.mark.parametrize('arch', ['skresnet18', 'skresnet34', 'resnest50d', 'resnest269e'])
def test_lucid_version_3(arch):
    """No state dict of version 3 is available: the names are those of its documents and code."""
    layout = LAYOUTS['Lucid 3 SK-ResNet' if 'sk' in arch else 'Lucid 3 ResNeSt']
    ours = getattr(timm.models, arch)(device='meta').state_dict()
    theirs = layout.to_theirs(ours)
    stem = {'stem.0.weight', 'stem.1.running_mean'} if 'sk' in arch else {'conv1.6.weight', 'bn1.running_mean'}
    assert {'classifier.weight', 'classifier.bias', *stem} <= set(theirs)
    renamed = ('fc.', 'conv1.', 'bn1.') if 'sk' in arch else ('fc.',)
    assert {key for key in ours if key not in theirs} == {key for key in ours if key.startswith(renamed)}
    assert list(layout.to_ours(theirs)) == list(ours)
    assert recognize(theirs) is layout
