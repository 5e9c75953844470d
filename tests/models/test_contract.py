"""What timm's users expect of any model, for each trunk and kind of block, by value where a value exists.

Each kind of net runs once, with few blocks; the names that differ from it in depth alone are shown to be the same net.
The default tier has one net for each kind of block, the deep tier all.
"""

import copy
import pickle

import pytest
import timm
import timm.layers
import timm.models
import torch
import torch.nn.functional as F
from tiers import deep_except
from timm_pair import assert_differs, assert_same
from torch import Tensor, nn
from variants import (
    CIFAR,
    DEEPER,
    KINDS,
    LSK,
    LUCID_NAMES,
    MOBILE,
    ONE_PER_BLOCK,
    RESNESTS,
    SHUFFLE,
    TRUNKS,
    blocks_of,
    filled,
    images,
    level_outputs,
    shallow,
    stages,
    units_of,
)

from timm_sk.pretrained import save_safetensors

DEFAULT = [*ONE_PER_BLOCK, CIFAR]
RESNETS = [*KINDS, CIFAR]
each_net = pytest.mark.parametrize('name', deep_except(DEFAULT, [*TRUNKS, LSK]))
each_trunk = pytest.mark.parametrize('name', deep_except(DEFAULT, TRUNKS))
each_resnet = pytest.mark.parametrize('name', deep_except(DEFAULT, RESNETS))

LAST_NORMS = ['bn3.weight', 'conv3.bn.weight', 'conv2.bn.weight', 'conv2.bn0.weight']
ONE_LAYER_FOR_ALL_BRANCHES = LUCID_NAMES + RESNESTS


def first_unit(model: nn.Module) -> nn.Module:
    return next(iter(units_of(model).values()))


def classify(model: nn.Module, pooled: Tensor) -> Tensor:
    """The logits of pooled features, by the classifier's parameters."""
    return pooled @ model.get_classifier().weight.T + model.get_classifier().bias


@pytest.mark.parametrize(('name', 'kind'), DEEPER.items())
def test_deeper_nets_differ_in_depth_alone(name, kind):
    assert repr(shallow(name, device='meta')) == repr(shallow(kind, device='meta'))


@each_net
@torch.inference_mode()
def test_head(name):
    model = filled(name, num_classes=10)
    features = model.forward_features(images())
    pooled = features.mean((2, 3))
    assert torch.equal(features, level_outputs(model, images())[-1])
    assert_same(model.forward_head(features, pre_logits=True), pooled, 1e-5)
    assert_same(model(images()), classify(model, pooled), 1e-5)
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg['classifier'])
    assert model.get_classifier().out_features == model.num_classes == 10
    assert model.num_features == model.head_hidden_size == features.shape[1]
    assert torch.equal(filled(name, num_classes=0)(images()), model.forward_head(features, pre_logits=True))


@each_net
@torch.inference_mode()
def test_reset_classifier(name):
    model = shallow(name, dtype=torch.bfloat16, device='meta')
    model.reset_classifier(7, 'catavgmax')
    weight = model.get_classifier().weight
    assert (weight.dtype, weight.device.type) == (torch.bfloat16, 'meta')
    assert weight.shape == (7, 2 * model.num_features)
    assert model.head_hidden_size == weight.shape[1] or name in RESNETS  # timm's ResNet keeps the number
    assert model(images(dtype=torch.bfloat16).to('meta')).shape == (2, 7)
    model = filled(name)
    features = model.forward_features(images())
    model.reset_classifier(0)
    assert_same(model(images()), features.mean((2, 3)), 1e-5)
    model.reset_classifier(7, 'max')
    assert_same(model(images()), classify(model, features.amax((2, 3))), 1e-5)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), features)


@each_net
@pytest.mark.parametrize('global_pool', deep_except(['catavgmax'], ['avg', 'max', 'avgmax', 'catavgmax', '']))
@torch.inference_mode()
def test_global_pool(name, global_pool):
    model = filled(name, num_classes=0, global_pool=global_pool)
    features = model.forward_features(images())
    average, largest = features.mean((2, 3)), features.amax((2, 3))
    expected = {
        'avg': average,
        'max': largest,
        'avgmax': (average + largest) / 2,
        'catavgmax': torch.cat([average, largest], dim=1),
        '': features,
    }
    assert_same(model(images()), expected[global_pool], 1e-5)


@each_net
@pytest.mark.parametrize('in_chans', deep_except([4], [1, 4]))
@torch.inference_mode()
def test_in_chans(name, in_chans):
    model = filled(name, in_chans=in_chans, num_classes=5)
    first_conv = model.get_submodule(model.pretrained_cfg['first_conv'])
    assert first_conv.in_channels == in_chans
    x = images(channels=in_chans)
    assert_differs(model(torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], dim=1)), model(x))


@each_net
@pytest.mark.parametrize('feature_cls', deep_except(['list', 'fx'], ['list', 'dict', 'hook', 'fx', 'getter']))
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
@torch.inference_mode()
def test_features_only(name, feature_cls, tmp_path):
    model = filled(name)
    *expected, _ = level_outputs(model, images())
    save_safetensors(model.state_dict(), tmp_path / 'model.safetensors')
    taken = (1, len(expected) - 1)
    backbone = shallow(
        name,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')),
        features_only=True,
        feature_cls=feature_cls,
        out_indices=taken,
    ).eval()
    found = backbone(images())
    found = list(found.values()) if isinstance(found, dict) else found
    for feature, level in zip(found, taken, strict=True):
        assert_same(feature, expected[level], 1e-5)
    assert backbone.feature_info.channels() == [expected[level].shape[1] for level in taken]
    assert backbone.feature_info.reduction() == [64 // expected[level].shape[-1] for level in taken]


@each_net
def test_features_only_by_default(name):
    backbone = shallow(name, features_only=True, device='meta')
    sizes = [feature.shape[-1] for feature in backbone(torch.empty(2, 3, 64, 64, device='meta'))]
    assert sizes == {CIFAR: [64, 64, 32, 16], LSK: [16, 8, 4, 2]}.get(name, [32, 16, 8, 4, 2])
    assert backbone.feature_info.reduction() == [64 // size for size in sizes]


@each_net
@torch.inference_mode()
def test_forward_intermediates(name):
    model = filled(name)
    *expected, features = level_outputs(model, images())
    last, intermediates = model.forward_intermediates(images())
    assert torch.equal(last, features)
    assert all(torch.equal(i, e) for i, e in zip(intermediates, expected, strict=True))
    first, second = model.forward_intermediates(images(), indices=[0, -2], intermediates_only=True, stop_early=True)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[-2])
    assert torch.equal(model.forward_intermediates(images(), indices=2, intermediates_only=True)[0], expected[-2])
    stopped, _ = model.forward_intermediates(images(), indices=[2], stop_early=True)
    assert torch.equal(stopped, expected[2])


@pytest.mark.parametrize('name', [CIFAR, SHUFFLE])
def test_forward_intermediates_wrong_arguments(name):
    model = shallow(name)
    count = len(model.feature_info)
    for indices in (0, count + 1, [count], [-count - 1], []):
        with pytest.raises(ValueError, match=f'indices must name some of the {count} levels'):
            model.forward_intermediates(images(), indices=indices)
    with pytest.raises(ValueError, match='output_fmt must be "NCHW", got "NLC"'):
        model.forward_intermediates(images(), output_fmt='NLC')


@each_net
@torch.inference_mode()
def test_prune_intermediate_layers(name):
    model = filled(name, num_classes=10)
    logits, (*levels, _) = model(images()), level_outputs(model, images())
    assert model.prune_intermediate_layers([-1], prune_head=False) == [len(levels) - 1]
    assert torch.equal(model(images()), logits)
    assert model.prune_intermediate_layers([2 - len(levels)]) == [2]
    assert not list(model.get_classifier().parameters())
    assert torch.equal(model(images()), levels[2])
    if name != MOBILE:  # which has no stages any more
        assert not list(stages(model)[-1].parameters())
    if name not in KINDS:  # timm's ResNet keeps the numbers
        assert model.num_features == model.head_hidden_size == levels[2].shape[1]


@each_net
def test_group_matcher(name):
    """Every parameter is in the group of the stem, of its stage or block, or of the head."""
    model = shallow(name, device='meta')
    names = [key for key, _ in model.named_parameters()]
    for coarse, blocks in ((True, len(stages(model))), (False, len(blocks_of(model)))):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)  # group by parameter
        assert sorted(groups) == sorted(names)
        assert set(groups.values()) == set(range(blocks + 2))  # stem, blocks, head
        stem = {key for key in names if key.startswith(('conv1', 'bn1', 'conv_stem', 'patch_embed1'))}
        assert {key for key in names if groups[key] == 0} == stem
        classifier = model.pretrained_cfg['classifier']
        assert {key for key in names if groups[key] == blocks + 1} == {f'{classifier}.weight', f'{classifier}.bias'}
        for key in names:  # the last convolution goes with the last block, as in timm
            assert groups[key] == blocks or not key.startswith(('conv5', 'conv_head'))


@each_net
def test_set_grad_checkpointing(name):
    results = []
    for enable in (False, True):
        model = filled(name, num_classes=10).double().train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss = F.cross_entropy(model(images(dtype=torch.float64)), torch.tensor([1, 2]))
        loss.backward()
        intermediates = model.forward_intermediates(images(dtype=torch.float64), intermediates_only=True)
        results.append([loss, *intermediates, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ('name', 'output_stride'),
    [
        pytest.param(name, stride, marks=() if name in DEFAULT and stride in (2, 8) else pytest.mark.deep)
        for name in (*RESNETS, MOBILE)
        for stride in ([2, 4] if name == CIFAR else [8, 16, 32])
    ],
)
@torch.inference_mode()
def test_output_stride(name, output_stride):
    model = filled(name, output_stride=output_stride)
    *outputs, _ = level_outputs(model, images())
    full = (1, 1, 2, 4) if name == CIFAR else (2, 4, 8, 16, 32)
    reductions = [min(stride, output_stride) for stride in full]
    assert [64 // output.shape[-1] for output in outputs] == reductions
    assert shallow(name, output_stride=output_stride, features_only=True).feature_info.reduction() == reductions
    if name not in KINDS:
        return
    plain = unit_dilations(shallow(name).layer1[0])
    # the first block of a dilated stage has the dilation of the stage before
    dilations = [4 * 2**stage // min(4 * 2**stage, output_stride) for stage in range(4)]
    for stage, dilation, previous in zip(stages(model), dilations, [1, *dilations], strict=False):
        first, *others = map(unit_dilations, stage)
        assert first == [previous * factor for factor in plain]
        assert all(other == [dilation * factor for factor in plain] for other in others)


def unit_dilations(block: nn.Module) -> list[int]:
    convs = [module for module in first_unit(block).modules() if isinstance(module, nn.Conv2d)]
    return [conv.dilation[0] for conv in convs if conv.kernel_size != (1, 1)]


@each_net
def test_drop_rate(name):
    model = filled(name, num_classes=10, drop_rate=0.4)
    pooled = torch.ones(2, model.num_features, 1, 1)
    torch.manual_seed(1)
    dropped = model.train().forward_head(pooled, pre_logits=True)
    torch.manual_seed(1)
    assert torch.equal(dropped, F.dropout(pooled.flatten(1), 0.4))


@each_resnet
def test_drop_path_and_drop_block(name):
    model = filled(name, num_classes=10, drop_path_rate=0.3, drop_block_rate=0.1)
    assert torch.equal(model(images()), filled(name, num_classes=10)(images()))
    blocks = blocks_of(model)
    rates = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in blocks]
    assert rates == pytest.approx([0.3 * i / (len(blocks) - 1) for i in range(len(blocks))])
    drops = [m for m in model.modules() if isinstance(m, timm.layers.DropBlock2d)]
    per_block = 1 if name in ONE_LAYER_FOR_ALL_BRANCHES else first_unit(model).num_paths
    assert len(drops) == per_block * sum(map(len, stages(model)[2:]))


@each_trunk
@torch.inference_mode()
def test_act_layer_and_norm_layer(name):
    model = shallow(name, act_layer='silu', norm_layer='groupnorm1').eval()
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.ReLU, nn.ReLU6, nn.BatchNorm2d, timm.layers.BatchNormAct2d}
    assert model(images(count=1)).isfinite().all()
    for unit in units_of(model).values():
        act, norm = (unit.act1, unit.bn1) if name in RESNESTS else (unit.attn.act, unit.attn.bn)
        assert type(act) is timm.layers.get_act_layer('silu')
        assert type(norm) is timm.layers.GroupNorm1


@pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK, [name for name in KINDS if name not in RESNESTS]))
@torch.inference_mode()
def test_aa_layer(name):
    model = filled(name, aa_layer=timm.layers.BlurPool2d)
    blurs = [key for key, module in model.named_modules() if isinstance(module, timm.layers.BlurPool2d)]
    per_block = 1 if name in ONE_LAYER_FOR_ALL_BRANCHES else first_unit(model.layer2).num_paths
    assert len([key for key in blurs if key.startswith('layer')]) == 3 * per_block  # the first block of three stages
    found, expected = level_outputs(model, images()), level_outputs(filled(name), images())
    assert [output.shape for output in found] == [output.shape for output in expected]
    assert_differs(model(images()), filled(name)(images()))


@each_resnet
def test_zero_init_last(name):
    for block in blocks_of(shallow(name, zero_init_last=True)):
        assert not next(block.get_parameter(key) for key in LAST_NORMS if key in dict(block.named_parameters())).any()
    plain = shallow(name, zero_init_last=False)
    assert all(norm.weight.all() for norm in plain.modules() if isinstance(norm, nn.BatchNorm2d))


@each_trunk
def test_batch_of_one_in_train_mode(name):
    model = shallow(name).train()
    with pytest.raises(ValueError, match='at least 2 images in train mode, got a batch of 1: use a larger batch'):
        model(images(count=1, size=128))
    frozen = timm.layers.freeze_batch_norm_2d(model)
    assert frozen(images(count=1)).isfinite().all()


@each_net
def test_device_and_dtype(name):
    model = shallow(name, device='meta', dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for key, b in model.named_buffers() if 'num_batches' not in key)]
    assert {(t.device.type, t.dtype) for t in tensors} == {('meta', torch.bfloat16)}
    assert model(torch.empty(2, 3, 64, 64, device='meta', dtype=torch.bfloat16)).shape == (2, model.num_classes)
    expected = filled(name)
    model.eval().load_state_dict(expected.state_dict(), assign=True)
    with torch.inference_mode():
        assert torch.equal(model(images()), expected(images()))


@each_net
@torch.inference_mode()
def test_channels_last(name):
    model, x = filled(name).double(), images(dtype=torch.float64)
    expected = model(x)
    features = model.to(memory_format=torch.channels_last).forward_features(x.to(memory_format=torch.channels_last))
    assert features.stride()[1] == 1
    assert_same(model.forward_head(features), expected, 1e-12)


@each_net
def test_copies(name):
    model = filled(name)
    with torch.inference_mode():
        expected = model(images())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images()), expected)


@each_net
@pytest.mark.parametrize('owner', deep_except(['torch'], ['torch', 'timm']))
@torch.inference_mode()
def test_sync_batchnorm_conversion(name, owner):
    if (name, owner) == (MOBILE, 'torch'):
        return  # drops the activations of timm's blocks
    convert = nn.SyncBatchNorm.convert_sync_batchnorm if owner == 'torch' else timm.layers.convert_sync_batchnorm
    converted = convert(filled(name))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert torch.equal(converted(images()), filled(name)(images()))
