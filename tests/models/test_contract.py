"""What timm's users expect of any model on its ResNet trunk, for every variant, by value where a value exists.

Each kind of net runs once, with few blocks; the names that differ from it in depth alone are shown to be the same net.
The default tier has one net for each kind of block, the deep tier all.
"""

import copy
import io
import pickle

import pytest
import timm
import timm.layers
import timm.models
import torch
import torch.nn.functional as F
from tiers import deep_except
from torch import nn
from variants import DEEPER, KINDS, LUCID_NAMES, ONE_PER_BLOCK, RESNESTS, STAGES, filled, images, shallow

from timm_sk.pretrained import save_safetensors

each_architecture = pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK, KINDS))

BASIC = ['skresnet18', 'skresnet34', 'skresnet18_mindcv', 'skresnet34_mindcv']
LAST_NORMS = ['bn3.weight', 'conv3.bn.weight', 'conv2.bn.weight', 'conv2.bn0.weight']
ONE_LAYER_FOR_ALL_BRANCHES = LUCID_NAMES + RESNESTS
SK_UNIT = {name: 'conv1' if name in BASIC else 'conv2' for name in KINDS}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def stage_outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Stem and stages, one module after the other."""
    outputs = [model.act1(model.bn1(model.conv1(x)))]
    outputs.append(model.layer1(model.maxpool(outputs[0].clone())))
    for stage in STAGES[1:]:
        outputs.append(getattr(model, stage)(outputs[-1].clone()))
    return outputs


@pytest.mark.parametrize(('name', 'kind'), DEEPER.items())
def test_deeper_names_are_the_same_nets_but_for_their_depth(name, kind):
    assert repr(shallow(name, device='meta')) == repr(shallow(kind, device='meta'))


@each_architecture
@torch.inference_mode()
def test_head(name):
    model = filled(name, num_classes=10)
    features = model.forward_features(images())
    pooled = features.mean((2, 3))
    assert torch.equal(features, stage_outputs(model, images())[-1])
    assert close(model.forward_head(features, pre_logits=True), pooled)
    assert close(model(images()), pooled @ model.fc.weight.T + model.fc.bias)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == 'fc' == model.pretrained_cfg['classifier']
    assert model.fc.out_features == model.num_classes == 10
    assert model.num_features == model.head_hidden_size == features.shape[1]
    assert torch.equal(filled(name, num_classes=0)(images()), model.forward_head(features, pre_logits=True))


@each_architecture
@torch.inference_mode()
def test_reset_classifier_keeps_device_and_dtype(name):
    model = shallow(name, dtype=torch.bfloat16, device='meta')
    model.reset_classifier(7, 'max')
    assert (model.fc.weight.dtype, model.fc.weight.device.type) == (torch.bfloat16, 'meta')
    assert model(images(dtype=torch.bfloat16).to('meta')).shape == (2, 7)
    model = filled(name)
    features = model.forward_features(images())
    model.reset_classifier(0)
    assert close(model(images()), features.mean((2, 3)))
    model.reset_classifier(7, 'max')
    assert close(model(images()), features.amax((2, 3)) @ model.fc.weight.T + model.fc.bias)


@each_architecture
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
    assert close(model(images()), expected[global_pool])


@each_architecture
@pytest.mark.parametrize('in_chans', deep_except([4], [1, 4]))
@torch.inference_mode()
def test_in_chans(name, in_chans):
    model = filled(name, in_chans=in_chans, num_classes=5)
    first_conv = model.get_submodule(model.pretrained_cfg['first_conv'])
    assert first_conv.in_channels == in_chans
    x = images(channels=in_chans)
    without_last = torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], dim=1)
    assert not close(model(x), model(without_last), 1e-3)


@each_architecture
@pytest.mark.parametrize('feature_cls', deep_except(['list', 'fx'], ['list', 'dict', 'hook', 'fx', 'getter']))
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
@torch.inference_mode()
def test_features_only(name, feature_cls, tmp_path):
    model = filled(name)
    expected = stage_outputs(model, images())
    save_safetensors(model.state_dict(), tmp_path / 'model.safetensors')
    backbone = shallow(
        name,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')),
        features_only=True,
        feature_cls=feature_cls,
        out_indices=(1, 4),
    ).eval()
    found = backbone(images())
    found = list(found.values()) if isinstance(found, dict) else found
    assert len(found) == 2
    assert all(close(f, e) for f, e in zip(found, [expected[1], expected[4]], strict=True))
    assert backbone.feature_info.channels() == [expected[1].shape[1], expected[4].shape[1]]
    assert backbone.feature_info.reduction() == [4, 32]


@each_architecture
@torch.inference_mode()
def test_forward_intermediates(name):
    model = filled(name)
    expected = stage_outputs(model, images())
    last, intermediates = model.forward_intermediates(images())
    assert torch.equal(last, expected[-1])
    assert all(torch.equal(i, e) for i, e in zip(intermediates, expected, strict=True))
    taken = model.forward_intermediates(images(), indices=[1, 3], intermediates_only=True, stop_early=True)
    assert len(taken) == 2
    assert torch.equal(taken[0], expected[1])
    assert torch.equal(taken[1], expected[3])


@each_architecture
@torch.inference_mode()
def test_prune_intermediate_layers(name):
    model = filled(name)
    expected = stage_outputs(model, images())[2]
    assert model.prune_intermediate_layers([2]) == [2]
    assert not list(model.layer3.parameters())
    assert not list(model.fc.parameters())
    assert torch.equal(model(images()), expected)


@each_architecture
def test_group_matcher_places_every_parameter(name):
    model = shallow(name, device='meta')
    names = [key for key, _ in model.named_parameters()]
    for coarse, blocks in ((True, 4), (False, sum(len(getattr(model, stage)) for stage in STAGES))):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)  # group by parameter
        assert sorted(groups) == sorted(names)
        assert set(groups.values()) == set(range(blocks + 2))  # stem, blocks, head
        assert {key for key in names if groups[key] == 0} == {key for key in names if key.startswith(('conv1', 'bn1'))}
        assert {key for key in names if groups[key] == blocks + 1} == {'fc.weight', 'fc.bias'}


@each_architecture
def test_grad_checkpointing_changes_nothing(name):
    results = []
    for enable in (False, True):
        model = filled(name, num_classes=10).double().train()
        model.set_grad_checkpointing(enable)
        loss = F.cross_entropy(model(images(dtype=torch.float64)), torch.tensor([1, 2]))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_architecture
@pytest.mark.parametrize('output_stride', deep_except([8], [8, 16, 32]))
@torch.inference_mode()
def test_output_stride(name, output_stride):
    model = filled(name, output_stride=output_stride)
    outputs = stage_outputs(model, images())
    reductions = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [64 // output.shape[-1] for output in outputs] == reductions
    assert [info['reduction'] for info in model.feature_info] == reductions
    plain = unit_dilations(shallow(name).layer1[0].get_submodule(SK_UNIT[name]))
    # the first block of a dilated stage has the dilation of the stage before
    dilations = [4 * 2**stage // min(4 * 2**stage, output_stride) for stage in range(4)]
    for stage, dilation, previous in zip(STAGES, dilations, [1, *dilations], strict=False):
        first, *others = [unit_dilations(block.get_submodule(SK_UNIT[name])) for block in getattr(model, stage)]
        assert first == [previous * factor for factor in plain]
        assert all(other == [dilation * factor for factor in plain] for other in others)


def unit_dilations(unit: nn.Module) -> list[int]:
    return [conv.dilation[0] for conv in unit.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1)]


@each_architecture
def test_drop_rates(name):
    model = filled(name, num_classes=10, drop_path_rate=0.3, drop_rate=0.4, drop_block_rate=0.1)
    plain = filled(name, num_classes=10)
    assert torch.equal(model(images()), plain(images()))
    blocks = [block for stage in STAGES for block in getattr(model, stage)]
    rates = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in blocks]
    assert rates == pytest.approx([0.3 * i / (len(blocks) - 1) for i in range(len(blocks))])
    drops = [m for m in model.modules() if isinstance(m, timm.layers.DropBlock2d)]
    per_block = 1 if name in ONE_LAYER_FOR_ALL_BRANCHES else model.layer3[0].get_submodule(SK_UNIT[name]).num_paths
    assert len(drops) == per_block * (len(model.layer3) + len(model.layer4))
    pooled = torch.ones(2, model.num_features, 1, 1)
    torch.manual_seed(1)
    dropped = model.train().forward_head(pooled, pre_logits=True)
    torch.manual_seed(1)
    assert torch.equal(dropped, F.dropout(torch.ones(2, model.num_features), 0.4))


@each_architecture
@torch.inference_mode()
def test_act_and_norm_layer_reach_everything(name):
    model = shallow(name, act_layer='silu', norm_layer='groupnorm1')
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.ReLU, nn.BatchNorm2d}
    assert model(images(count=1)).isfinite().all()
    unit = model.layer1[0].get_submodule(SK_UNIT[name])
    act, norm = (unit.act1, unit.bn1) if name in RESNESTS else (unit.attn.act, unit.attn.bn)
    assert type(act) is timm.layers.get_act_layer('silu')
    assert type(norm) is timm.layers.GroupNorm1


@pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK, [name for name in KINDS if name not in RESNESTS]))
@torch.inference_mode()
def test_aa_layer(name):
    model = filled(name, aa_layer=timm.layers.BlurPool2d)
    blurs = [key for key, module in model.named_modules() if isinstance(module, timm.layers.BlurPool2d)]
    per_block = 1 if name in ONE_LAYER_FOR_ALL_BRANCHES else model.layer2[0].get_submodule(SK_UNIT[name]).num_paths
    assert len([key for key in blurs if key.startswith('layer')]) == 3 * per_block  # the first block of three stages
    assert [output.shape for output in stage_outputs(model, images())] == [
        output.shape for output in stage_outputs(filled(name), images())
    ]
    assert not close(model(images()), filled(name)(images()), 1e-3)


@each_architecture
def test_zero_init_last(name):
    model = shallow(name, zero_init_last=True)
    for block in (block for stage in STAGES for block in getattr(model, stage)):
        assert not next(block.get_parameter(key) for key in LAST_NORMS if key in dict(block.named_parameters())).any()
    plain = shallow(name, zero_init_last=False)
    assert all(norm.weight.all() for norm in plain.modules() if isinstance(norm, nn.BatchNorm2d))


@each_architecture
def test_batch_of_one_in_train_mode(name):
    model = shallow(name).train()
    with pytest.raises(ValueError, match='at least 2 images in train mode'):
        model(images(count=1, size=128))
    frozen = timm.layers.freeze_batch_norm_2d(model)
    assert frozen(images(count=1)).isfinite().all()


@each_architecture
def test_device_and_dtype(name):
    model = shallow(name, device='meta', dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for key, b in model.named_buffers() if 'num_batches' not in key)]
    assert {(t.device.type, t.dtype) for t in tensors} == {('meta', torch.bfloat16)}
    assert model(torch.empty(2, 3, 64, 64, device='meta', dtype=torch.bfloat16)).shape == (2, model.num_classes)
    expected = filled(name)
    model = model.float().to_empty(device='cpu').eval()
    model.load_state_dict(expected.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(images()), expected(images()))


@each_architecture
@torch.inference_mode()
def test_channels_last(name):
    model = filled(name)
    expected = model(images())
    features = model.to(memory_format=torch.channels_last).forward_features(
        images().to(memory_format=torch.channels_last)
    )
    strides = features.stride()
    assert strides[1] == 1
    assert close(model.forward_head(features), expected)


@each_architecture
def test_copies(name):
    model = filled(name)
    with torch.inference_mode():
        expected = model(images())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(images()), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    restored = shallow(name).eval()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(tensor, restored.state_dict()[key]) for key, tensor in model.state_dict().items())


@each_architecture
@pytest.mark.parametrize(
    'convert',
    deep_except(
        [nn.SyncBatchNorm.convert_sync_batchnorm],
        [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm],
    ),
    ids=['torch', 'timm'],
)
@torch.inference_mode()
def test_sync_batchnorm_conversion_changes_nothing(name, convert):
    expected = filled(name)(images())
    converted = convert(filled(name))
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert torch.equal(converted(images()), expected)
