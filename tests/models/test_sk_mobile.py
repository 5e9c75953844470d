"""The lightweight nets: plain twins against their origins, units against the core layer, and timm's contract."""

import copy
import hashlib
import pickle
import runpy

import pytest
import timm
import timm.layers
import timm.models
import torch
import torch.fx
import torch.nn.functional as F
import torchvision.models
from random_weights import fill_model
from subprocesses import ROOT
from torch import nn
from variants import filled, images

import timm_sk
from timm_sk.errors import NoWeightsError
from timm_sk.pretrained import save_safetensors

pytestmark = pytest.mark.deep

NAMES = ['sk_shufflenetv2_x0_5', 'sk_shufflenetv2_x1_0', 'sk_mobilenetv2_100']
SHUFFLE, MOBILE = 'sk_shufflenetv2_x0_5', 'sk_mobilenetv2_100'
ORIGINS = {
    'sk_shufflenetv2_x0_5': torchvision.models.shufflenet_v2_x0_5,
    'sk_shufflenetv2_x1_0': torchvision.models.shufflenet_v2_x1_0,
    'sk_mobilenetv2_100': timm.models.mobilenetv2_100,
}
FINGERPRINTS = {
    'sk_shufflenetv2_x0_5': '167c68dd38e2a0d522f8e77b8cb8e0fbab3e7e7f7816c4a60c56e4e402fc2a62',
    'sk_shufflenetv2_x1_0': '1f0b1545269a9a6b03a912441777e83a22ba28d1bf266b2223299076c8d95c31',
    'sk_mobilenetv2_100': '72659e0b5b054666dca9335f3590bf6e1870122f7a87126e0812f1ae9d34559f',
}
each_name = pytest.mark.parametrize('name', NAMES)
each_trunk = pytest.mark.parametrize('name', [SHUFFLE, MOBILE])


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def sk_units(model: nn.Module) -> dict[str, timm_sk.SelectiveKernel]:
    return {name: module for name, module in model.named_modules() if isinstance(module, timm_sk.SelectiveKernel)}


@torch.no_grad()
def level_outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs at reductions 2, 4, 8, 16, 32, and what reaches the head."""
    if hasattr(model, 'conv5'):
        steps = [model.conv1, model.maxpool, model.stage2, model.stage3, model.stage4, model.conv5]
    else:
        blocks, stem, last = model.blocks, [model.conv_stem, model.bn1], [model.conv_head, model.bn2]
        steps = [nn.Sequential(*stem, blocks[0]), *blocks[1:3], blocks[3:5], blocks[5:], nn.Sequential(*last)]
    outputs = []
    for step in steps:
        x = step(x)
        outputs.append(x)
    return outputs


@each_name
def test_fingerprint(name):
    shapes = [(key, tuple(tensor.shape)) for key, tensor in timm.create_model(name, device='meta').state_dict().items()]
    assert hashlib.sha256(repr(shapes).encode()).hexdigest() == FINGERPRINTS[name]


@each_name
def test_names(name):
    assert timm.models.is_model_in_modules(name, ['sk_mobile'])
    assert timm.get_pretrained_cfg(name).tag == 'untrained'
    with pytest.raises(NoWeightsError, match='no pretrained weights'):
        timm.create_model(name, pretrained=True)


@each_name
def test_plain_twin_is_the_original(name):
    original = fill_model(ORIGINS[name]())
    model = timm.create_model(name, unit='plain')
    assert list(model.state_dict()) == list(original.state_dict())
    model.load_state_dict(original.state_dict())
    for training in (False, True):
        model.train(training), original.train(training)
        torch.manual_seed(0)
        expected = original(images())
        torch.manual_seed(0)
        assert close(model(images()), expected, 1e-6)


@each_name
def test_what_the_units_leave_alone_keeps_its_name_and_its_shape(name):
    original = {key: tensor.shape for key, tensor in ORIGINS[name]().state_dict().items()}
    for unit, marks in (('sk', ('.sk.', '.conv_dw.')), ('se', ('.se.',))):
        model = timm.create_model(name, unit=unit, device='meta')
        own = {key: tensor.shape for key, tensor in model.state_dict().items()}
        kept = own.keys() & original.keys()
        assert all(own[key] == original[key] for key in kept)
        assert all(any(mark in key for mark in marks) for key in own.keys() - kept)
        depthwise = sum(shape[1:] == (1, 3, 3) for shape in original.values())
        assert sum(shape[1:] == (1, 3, 3) for shape in own.values()) == depthwise * (2 if unit == 'sk' else 1)
        assert len(sk_units(model)) == (depthwise if unit == 'sk' else 0)
        assert sum(isinstance(m, timm.layers.SqueezeExcite) for m in model.modules()) == depthwise * (unit == 'se')


@each_trunk
@torch.inference_mode()
def test_a_unit_is_the_core_layer(name):
    model = filled(name)
    calls = {}
    for path, unit in sk_units(model).items():
        unit.register_forward_hook(lambda _, x, y, path=path: calls.update({path: (x[0].clone(), y.clone())}))
    model(images())
    for path, unit in sk_units(model).items():
        channels, (x, found) = unit.out_channels, calls[path]
        core = timm_sk.SelectiveKernel(
            channels,
            stride=x.shape[-1] // found.shape[-1],
            groups=channels,
            rd_channels=max(channels // 16, 32),
            split_input=False,
            act_layer='relu6' if name == MOBILE else 'relu',
        ).eval()
        core.load_state_dict(unit.state_dict())
        if name == MOBILE:
            assert torch.equal(found, core(x))
        else:  # no activation in the branches
            branches = [branch.bn(branch.conv(x)) for branch in core.paths]
            expected = timm_sk.ops.select(branches, core.attn(timm_sk.ops.fuse(branches)))
            assert torch.equal(found, expected)
            assert not close(found, core(x), 1e-2)
    assert {unit.attn.fc_reduce.out_channels for unit in sk_units(model).values()} == (
        {32, 36, 60} if name == MOBILE else {32}
    )


@each_trunk
@torch.inference_mode()
def test_every_branch_and_attention_changes_the_output(name):
    model = filled(name, num_classes=10)
    expected = model(images())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            weight = module.weight.clone()
            module.weight.neg_()
            assert not torch.equal(model(images()), expected)
            module.weight.copy_(weight)
    assert torch.equal(model(images()), expected)


@each_name
@torch.inference_mode()
def test_head(name):
    model = filled(name, num_classes=10)
    classifier = model.get_classifier()
    features = model.forward_features(images())
    pooled = features.mean((2, 3))
    assert torch.equal(features, level_outputs(model, images())[-1])
    assert close(model.forward_head(features, pre_logits=True), pooled)
    assert close(model(images()), pooled @ classifier.weight.T + classifier.bias)
    assert model.get_submodule(model.pretrained_cfg['classifier']) is classifier
    assert classifier.out_features == model.num_classes == 10
    assert model.num_features == model.head_hidden_size == features.shape[1]
    assert torch.equal(filled(name, num_classes=0)(images()), model.forward_head(features, pre_logits=True))


@each_trunk
@torch.inference_mode()
def test_reset_classifier_keeps_device_and_dtype(name):
    model = timm.create_model(name, dtype=torch.bfloat16, device='meta')
    model.reset_classifier(7, 'catavgmax')
    weight = model.get_classifier().weight
    assert (weight.dtype, weight.device.type) == (torch.bfloat16, 'meta')
    assert model.head_hidden_size == weight.shape[1] == 2 * model.num_features
    assert model(images(dtype=torch.bfloat16).to('meta')).shape == (2, 7)
    model = filled(name)
    model.reset_classifier(0)
    assert close(model(images()), model.forward_features(images()).mean((2, 3)))


@pytest.mark.parametrize('global_pool', ['avg', 'max', 'avgmax', 'catavgmax', ''])
@torch.inference_mode()
def test_global_pool(global_pool):
    model = filled(SHUFFLE, num_classes=0, global_pool=global_pool)
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


@each_trunk
@pytest.mark.parametrize('in_chans', [1, 4])
@torch.inference_mode()
def test_in_chans(name, in_chans, tmp_path):
    save_safetensors(filled(name).state_dict(), tmp_path / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'model.safetensors'))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans).eval()
    assert model.get_submodule(model.pretrained_cfg['first_conv']).in_channels == in_chans
    if in_chans == 1:  # timm sums the weights over the colours
        grey = images(channels=1)
        assert close(model(grey), filled(name)(grey.expand(-1, 3, -1, -1)), 1e-4)
    else:
        x = images(channels=in_chans)
        without_last = torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], dim=1)
        assert not close(model(x), model(without_last), 1e-3)


@each_trunk
@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
@torch.inference_mode()
def test_features_only(name, feature_cls, tmp_path):
    model = filled(name)
    expected = level_outputs(model, images())
    save_safetensors(model.state_dict(), tmp_path / 'model.safetensors')
    options = dict(
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')),
        features_only=True,
        feature_cls=feature_cls,
    )
    for levels in ((0, 1, 2, 3, 4), (1, 3)):
        backbone = timm.create_model(name, out_indices=levels, **options).eval()
        found = backbone(images())
        found = list(found.values()) if isinstance(found, dict) else found
        assert all(close(f, expected[level]) for f, level in zip(found, levels, strict=True))
        assert backbone.feature_info.channels() == [expected[level].shape[1] for level in levels]
        assert backbone.feature_info.reduction() == [2 ** (level + 1) for level in levels]


@each_name
def test_features_only_by_default(name):
    backbone = timm.create_model(name, features_only=True, device='meta')
    assert backbone.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [f.shape[-1] for f in backbone(torch.empty(2, 3, 64, 64, device='meta'))] == [32, 16, 8, 4, 2]


@each_trunk
@torch.inference_mode()
def test_forward_intermediates(name):
    model = filled(name)
    *expected, features = level_outputs(model, images())
    last, intermediates = model.forward_intermediates(images())
    assert torch.equal(last, features)
    assert all(torch.equal(i, e) for i, e in zip(intermediates, expected, strict=True))
    taken = model.forward_intermediates(images(), indices=[1, -2], intermediates_only=True, stop_early=True)
    assert len(taken) == 2
    assert torch.equal(taken[0], expected[1])
    assert torch.equal(taken[1], expected[3])
    assert torch.equal(model.forward_intermediates(images(), indices=2, intermediates_only=True)[0], expected[3])
    stopped, _ = model.forward_intermediates(images(), indices=[2], stop_early=True)
    assert torch.equal(stopped, expected[2])


def test_forward_intermediates_refuses_what_there_is_not():
    model = timm.create_model(SHUFFLE)
    for indices in (0, 6, [5], [-6], []):
        with pytest.raises(ValueError, match='indices must name some of the 5 levels'):
            model.forward_intermediates(images(), indices=indices)
    with pytest.raises(ValueError, match='output_fmt must be "NCHW", got "NLC"'):
        model.forward_intermediates(images(), output_fmt='NLC')


@each_trunk
@torch.inference_mode()
def test_prune_intermediate_layers(name):
    model = filled(name)
    expected = level_outputs(model, images())
    assert model.prune_intermediate_layers([-3]) == [2]
    assert not list(model.get_classifier().parameters())
    assert torch.equal(model(images()), expected[2])
    assert model.num_features == model.head_hidden_size == expected[2].shape[1]
    kept = filled(name, num_classes=10)
    whole = kept(images())
    assert kept.prune_intermediate_layers([4], prune_head=False) == [4]
    assert torch.equal(kept(images()), whole)


@each_trunk
def test_group_matcher_places_every_parameter(name):
    model = timm.create_model(name, device='meta')
    names = [key for key, _ in model.named_parameters()]
    stem = ('conv1.', 'conv_stem', 'bn1.')
    for coarse, blocks in ((True, 3 if name == SHUFFLE else 7), (False, 16 if name == SHUFFLE else 17)):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)  # group by parameter
        assert sorted(groups) == sorted(names)
        assert set(groups.values()) == set(range(blocks + 2))  # stem, blocks, head
        assert {key for key in names if groups[key] == 0} == {key for key in names if key.startswith(stem)}
        classifier = model.pretrained_cfg['classifier']
        assert {key for key in names if groups[key] == blocks + 1} == {f'{classifier}.weight', f'{classifier}.bias'}
        # the last convolution goes with the last block, as in timm
        assert groups['conv5.0.weight' if name == SHUFFLE else 'conv_head.weight'] == blocks


@each_trunk
def test_grad_checkpointing_changes_nothing(name):
    results = []
    for enable in (False, True):
        model = filled(name, num_classes=10).double().train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss = F.cross_entropy(model(images(dtype=torch.float64)), torch.tensor([1, 2]))
        loss.backward()
        # the statistics of the norms, which recomputing updates twice, are no part of these
        fresh = filled(name).train()
        fresh.set_grad_checkpointing(enable)
        intermediates = fresh.forward_intermediates(images(), intermediates_only=True)
        results.append([loss, *intermediates, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('output_stride', [8, 16, 32])
@torch.inference_mode()
def test_output_stride_of_mobilenetv2(output_stride):
    reductions = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    model = filled(MOBILE, output_stride=output_stride)
    assert [64 // output.shape[-1] for output in level_outputs(model, images())[:5]] == reductions
    backbone = timm.create_model(MOBILE, features_only=True, output_stride=output_stride)
    assert backbone.feature_info.reduction() == reductions
    original = timm.models.mobilenetv2_100(output_stride=output_stride)
    for path, unit in sk_units(model).items():
        depthwise = original.get_submodule(path)
        dilation = depthwise.dilation[0]
        assert [branch.conv.dilation[0] for branch in unit.paths] == [dilation, 2 * dilation]
        assert all(branch.conv.stride == depthwise.stride for branch in unit.paths)


def test_refused_arguments():
    with pytest.raises(ValueError, match='supports output_stride=32 only, got 16'):
        timm.create_model(SHUFFLE, output_stride=16)
    for name in (SHUFFLE, MOBILE):
        with pytest.raises(ValueError, match='unit must be one of sk, se, plain, got "cbam"'):
            timm.create_model(name, unit='cbam')
        with pytest.raises(TypeError, match='num_class'):
            timm.create_model(name, num_class=3)
    with pytest.raises(ValueError, match='padded symmetrically, got pad_type="same"'):
        timm.create_model(MOBILE, pad_type='same')


def test_drop_rates():
    for name in (SHUFFLE, MOBILE):
        model = timm.create_model(name, drop_rate=0.4).train()
        torch.manual_seed(1)
        dropped = model.forward_head(torch.ones(2, model.num_features, 1, 1), pre_logits=True)
        torch.manual_seed(1)
        assert torch.equal(dropped, F.dropout(torch.ones(2, model.num_features), 0.4))
    dropping = timm.create_model(MOBILE, drop_path_rate=0.3)
    assert sum(isinstance(m, timm.layers.DropPath) for m in dropping.modules()) == 16


@each_trunk
@pytest.mark.parametrize('unit', ['sk', 'se', 'plain'])
@torch.inference_mode()
def test_act_and_norm_layer_reach_everything(name, unit):
    model = timm.create_model(name, unit=unit, act_layer='silu', norm_layer='groupnorm1').eval()
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.ReLU, nn.ReLU6, nn.BatchNorm2d, timm.layers.BatchNormAct2d}
    assert model(images(count=1)).isfinite().all()
    for selective in sk_units(model).values():
        assert type(selective.attn.act) is timm.layers.get_act_layer('silu')
        assert type(selective.attn.bn) is type(selective.paths[1].bn) is timm.layers.GroupNorm1


def test_batchnorm_arguments_of_timm_reach_the_units():
    model = timm.create_model(MOBILE, bn_eps=1e-3, bn_momentum=0.01)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


@each_trunk
def test_batch_of_one_in_train_mode(name):
    model = timm.create_model(name).train()
    with pytest.raises(ValueError, match='at least 2 images in train mode'):
        model(images(count=1, size=128))
    frozen = timm.layers.freeze_batch_norm_2d(model)
    assert frozen(images(count=1)).isfinite().all()


@each_trunk
@pytest.mark.parametrize('unit', ['sk', 'se'])
def test_device_and_dtype(name, unit):
    model = timm.create_model(name, unit=unit, device='meta', dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for key, b in model.named_buffers() if 'num_batches' not in key)]
    assert {(t.device.type, t.dtype) for t in tensors} == {('meta', torch.bfloat16)}
    assert model(torch.empty(2, 3, 64, 64, device='meta', dtype=torch.bfloat16)).shape == (2, 1000)
    expected = filled(name, unit=unit)
    model = model.float().to_empty(device='cpu').eval()
    model.load_state_dict(expected.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(images()), expected(images()))


@each_trunk
@torch.inference_mode()
def test_channels_last(name):
    model, x = filled(name).double(), images(dtype=torch.float64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    assert close(model(x.to(memory_format=torch.channels_last)), expected, 1e-12)


@each_trunk
@torch.inference_mode()
def test_copies(name):
    model = filled(name)
    expected = model(images())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images()), expected)


@pytest.mark.parametrize(
    ('name', 'convert'),
    [
        (SHUFFLE, nn.SyncBatchNorm.convert_sync_batchnorm),
        (SHUFFLE, timm.layers.convert_sync_batchnorm),
        (MOBILE, timm.layers.convert_sync_batchnorm),
    ],
    ids=['shufflenetv2-torch', 'shufflenetv2-timm', 'mobilenetv2-timm'],
)
@torch.inference_mode()
def test_sync_batchnorm_conversion_changes_nothing(name, convert):
    expected = filled(name)(images())
    converted = convert(filled(name))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert torch.equal(converted(images()), expected)


@pytest.mark.deep
@each_trunk
def test_compile_takes_the_whole_graph(name):
    model = filled(name).double()
    x = images().double()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.inference_mode():
        assert close(compiled(x), model(x), 1e-11)
    model.train()
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.deep
@each_trunk
def test_export_with_dynamic_batch(name):
    model = filled(name).double()
    dynamic = ({0: torch.export.Dim('batch')},)
    exported = torch.export.export(model, (images().double(),), dynamic_shapes=dynamic).module()
    for count in (1, 2, 5):
        x = images(count).double()
        with torch.inference_mode():
            assert close(exported(x), model(x), 1e-11)


@pytest.mark.deep
@each_trunk
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_trace(name):
    model = filled(name).double()
    x = images(3).double()
    assert close(torch.jit.trace(model, images().double())(x), model(x), 1e-11)


@each_trunk
@torch.inference_mode()
def test_fx(name):
    model = filled(name).double()
    traced = torch.fx.symbolic_trace(model)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == 'call_function']
    assert called.count('fuse') == called.count('select') == len(sk_units(model))
    x = images().double()
    assert close(traced(x), model(x), 1e-11)


@pytest.mark.deep
def test_the_document_has_the_generated_table():
    script = runpy.run_path(str(ROOT / 'docs' / 'lightweight.py'))
    document = (ROOT / 'docs' / 'lightweight.md').read_text()
    assert script['table']() in document
    assert script['training_table']() in document
    assert '149.30 M' in script['table']()
