"""LSKNet: the makers' outputs, the selection written out, and what timm's users expect of any model."""

import copy
import pickle

import pytest
import timm
import timm.layers
import timm.models
import timm.optim
import torch
import torch.fx
import torch.nn.functional as F
from oracles import load_oracle
from torch import nn
from variants import filled, images

import timm_sk
from timm_sk.layers.large_selective_kernel import LargeSelectiveKernel
from timm_sk.pretrained import save_safetensors

pytestmark = pytest.mark.deep

NAMES = ['lsknet_t', 'lsknet_s']
PARAMS = {'lsknet_t': (3_990_190, 4_247_190), 'lsknet_s': (13_840_892, 14_353_892)}
CHANNELS = [32, 64, 160, 256]


def tiny(**kwargs: object) -> nn.Module:
    """An LSKNet-T with one or two blocks a stage and random weights, in eval mode."""
    return filled('lsknet_t', **{'depths': [1, 2, 1, 1], **kwargs})


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def stage_outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The feature maps, one module after the other."""
    outputs = []
    for stage in (1, 2, 3, 4):
        for part in ('patch_embed', 'block', 'norm'):
            x = model.get_submodule(f'{part}{stage}')(x)
        outputs.append(x)
    return outputs


@torch.inference_mode()
def test_oracle(record_property):
    oracle = load_oracle('lsknet_lsknet_t')
    model = timm.create_model('lsknet_t', num_classes=0).eval()
    model.load_state_dict(oracle.weights)  # the makers' names, each in use
    for tag, x in oracle.inputs.items():
        for number, found in enumerate(model.forward_intermediates(x, intermediates_only=True), 1):
            size = min(4, found.shape[-1])
            summary = {
                'mean': found.mean((0, 2, 3)),
                'std': found.std((0, 2, 3), correction=0),
                'tl': found[0, :4, :size, :size],
                'br': found[0, :4, -size:, -size:],
            }
            for part, value in summary.items():
                expected = oracle.expected[f'out{number}.{part}.{tag}']
                distance = float((value - expected).abs().max() / found.std())
                record_property(f'{tag}.out{number}.{part}', distance)
                assert distance <= 3e-5, (tag, number, part)


@pytest.mark.parametrize('name', NAMES)
def test_parameters(name):
    counts = [
        sum(parameter.numel() for parameter in timm.create_model(name, num_classes=n, device='meta').parameters())
        for n in (0, 1000)
    ]
    assert tuple(counts) == PARAMS[name]


@torch.inference_mode()
def test_selection():
    unit = LargeSelectiveKernel(8).eval()
    x = torch.randn(2, 8, 30, 33)
    small = F.conv2d(F.pad(x, [2] * 4), unit.conv0.weight, unit.conv0.bias, groups=8)
    large = F.conv2d(F.pad(small, [9] * 4), unit.conv_spatial.weight, unit.conv_spatial.bias, dilation=3, groups=8)
    u1, u2 = unit.conv1(small), unit.conv2(large)
    both = torch.cat([u1, u2], dim=1)
    gates = torch.sigmoid(unit.conv_squeeze(torch.stack([both.mean(1), both.max(1).values], dim=1)))
    expected = x * unit.conv(u1 * gates[:, 0, None] + u2 * gates[:, 1, None])
    assert close(unit(x), expected, 1e-6)
    with pytest.raises(ValueError, match='channels must be even, got 7'):
        LargeSelectiveKernel(7)


@torch.inference_mode()
def test_every_tensor_changes_the_output():
    model = tiny(num_classes=10)
    expected = model(images())
    for parameter in model.parameters():
        value = parameter.clone()
        parameter.add_(torch.linspace(0.1, 0.3, value.numel()).view_as(value))
        assert not torch.equal(model(images()), expected)
        parameter.copy_(value)
    assert torch.equal(model(images()), expected)


def test_initialisation():
    torch.manual_seed(0)
    model = timm.create_model('lsknet_t')
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        assert not conv.bias.any()
        if conv.weight.numel() > 1000:
            fan_out = conv.kernel_size[0] ** 2 * conv.out_channels / conv.groups
            assert float(conv.weight.detach().std() / (2 / fan_out) ** 0.5) == pytest.approx(1, abs=0.1)
    scales = [parameter for name, parameter in model.named_parameters() if 'layer_scale' in name]
    assert len(scales) == 2 * 13
    assert all(bool((scale == 1e-2).all()) for scale in scales)
    without_decay = timm.optim.param_groups_weight_decay(model, 0.1)[0]['params']
    assert {id(scale) for scale in scales} <= {id(parameter) for parameter in without_decay}


@torch.inference_mode()
def test_head():
    model = tiny(num_classes=10)
    features = model.forward_features(images())
    pooled = features.mean((2, 3))
    assert torch.equal(features, stage_outputs(model, images())[-1])
    assert close(model.forward_head(features, pre_logits=True), pooled)
    assert close(model(images()), pooled @ model.head.weight.T + model.head.bias)
    assert model.get_submodule(model.pretrained_cfg['classifier']) is model.get_classifier() is model.head
    assert model.head.out_features == model.num_classes == 10
    assert model.num_features == model.head_hidden_size == features.shape[1]
    assert torch.equal(tiny(num_classes=0)(images()), model.forward_head(features, pre_logits=True))


@torch.inference_mode()
def test_reset_classifier():
    model = timm.create_model('lsknet_t', dtype=torch.bfloat16, device='meta')
    model.reset_classifier(7, 'catavgmax')
    assert (model.head.weight.dtype, model.head.weight.device.type) == (torch.bfloat16, 'meta')
    assert model.head_hidden_size == model.head.weight.shape[1] == 2 * model.num_features
    assert model(images(dtype=torch.bfloat16).to('meta')).shape == (2, 7)
    model = tiny()
    features = model.forward_features(images())
    model.reset_classifier(0)
    assert close(model(images()), features.mean((2, 3)))
    model.reset_classifier(7, 'max')
    assert close(model(images()), features.amax((2, 3)) @ model.head.weight.T + model.head.bias)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), features)


@pytest.mark.parametrize('in_chans', [1, 4])
@torch.inference_mode()
def test_in_chans(in_chans, tmp_path):
    save_safetensors(tiny().state_dict(), tmp_path / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'model.safetensors'))
    model = timm.create_model(
        'lsknet_t', depths=[1, 2, 1, 1], pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans
    ).eval()
    assert model.get_submodule(model.pretrained_cfg['first_conv']).in_channels == in_chans
    if in_chans == 1:  # timm sums the weights over the colours
        grey = images(channels=1)
        assert close(model(grey), tiny()(grey.expand(-1, 3, -1, -1)), 1e-4)
    else:
        x = images(channels=in_chans)
        without_last = torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], dim=1)
        assert not close(model(x), model(without_last), 1e-3)


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
@torch.inference_mode()
def test_features_only(feature_cls, tmp_path):
    model = tiny()
    x = images(size=70)
    expected = stage_outputs(model, x)
    save_safetensors(model.state_dict(), tmp_path / 'model.safetensors')
    for levels in ((0, 1, 2, 3), (0, 2)):
        backbone = timm.create_model(
            'lsknet_t',
            depths=[1, 2, 1, 1],
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')),
            features_only=True,
            feature_cls=feature_cls,
            out_indices=levels,
        ).eval()
        found = backbone(x)
        found = list(found.values()) if isinstance(found, dict) else found
        assert all(close(f, expected[level]) for f, level in zip(found, levels, strict=True))
        assert backbone.feature_info.channels() == [CHANNELS[level] for level in levels]
        assert backbone.feature_info.reduction() == [4 * 2**level for level in levels]


def test_features_only_by_default():
    backbone = timm.create_model('lsknet_s', features_only=True, device='meta')
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert [f.shape[1:] for f in backbone(torch.empty(2, 3, 65, 97, device='meta'))] == [
        (64, 17, 25),
        (128, 9, 13),
        (320, 5, 7),
        (512, 3, 4),
    ]


@torch.inference_mode()
def test_forward_intermediates():
    model = tiny()
    expected = stage_outputs(model, images())
    last, intermediates = model.forward_intermediates(images())
    assert torch.equal(last, expected[-1])
    assert all(torch.equal(i, e) for i, e in zip(intermediates, expected, strict=True))
    taken = model.forward_intermediates(images(), indices=[0, -2], intermediates_only=True, stop_early=True)
    assert len(taken) == 2
    assert torch.equal(taken[0], expected[0])
    assert torch.equal(taken[1], expected[2])
    with pytest.raises(ValueError, match=r'some of the 4 levels \(0 to 3\), got \[4\]'):
        model.forward_intermediates(images(), indices=[4])
    with pytest.raises(ValueError, match='output_fmt must be "NCHW", got "NHWC"'):
        model.forward_intermediates(images(), output_fmt='NHWC')


@torch.inference_mode()
def test_prune_intermediate_layers():
    model = tiny()
    expected = stage_outputs(model, images())
    assert model.prune_intermediate_layers([1]) == [1]
    assert not list(model.block3.parameters())
    assert not list(model.head.parameters())
    assert torch.equal(model(images()), expected[1])
    model = tiny()
    assert model.prune_intermediate_layers(1, prune_head=False) == [3]
    assert close(model(images()), tiny()(images()))


def test_group_matcher_places_every_parameter():
    model = timm.create_model('lsknet_t', depths=[1, 2, 1, 1], device='meta')
    names = [key for key, _ in model.named_parameters()]
    for coarse, count in ((True, 6), (False, 7)):  # stem, stages or blocks, head
        groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)  # group by parameter
        assert sorted(groups) == sorted(names)
        assert set(groups.values()) == set(range(count))
        assert {key for key in names if groups[key] == 0} == {key for key in names if key.startswith('patch_embed1')}
        assert {key for key in names if groups[key] == count - 1} == {'head.weight', 'head.bias'}
        assert groups['patch_embed3.proj.weight'] == groups['block3.0.mlp.fc1.weight'] > groups['block2.1.norm1.weight']


def test_grad_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        model = tiny(num_classes=10).double().train()
        model.set_grad_checkpointing(enable)
        calls = []
        model.block2[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = F.cross_entropy(model(images(dtype=torch.float64)), torch.tensor([1, 2]))
        loss.backward()
        assert len(calls) == 1 + enable
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_drop_rates():
    model = tiny(drop_path_rate=0.4, drop_rate=0.4, proj_drop_rate=0.2)
    assert torch.equal(model(images()), tiny()(images()))
    blocks = [block for stage in (1, 2, 3, 4) for block in model.get_submodule(f'block{stage}')]
    assert [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert all(block.mlp.drop1.p == block.mlp.drop2.p == 0.2 for block in blocks)
    torch.manual_seed(1)
    dropped = model.train().forward_head(torch.ones(2, 256, 1, 1), pre_logits=True)
    torch.manual_seed(1)
    assert torch.equal(dropped, F.dropout(torch.ones(2, 256), 0.4))


def test_refused_arguments():
    for unknown in ('num_class', 'output_stride'):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
            timm.create_model('lsknet_t', **{unknown: 8})


def test_device_and_dtype():
    model = timm.create_model('lsknet_t', depths=[1, 2, 1, 1], device='meta', dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for key, b in model.named_buffers() if 'num_batches' not in key)]
    assert {(t.device.type, t.dtype) for t in tensors} == {('meta', torch.bfloat16)}
    expected = tiny()
    model = model.float().to_empty(device='cpu').eval()
    model.load_state_dict(expected.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(images()), expected(images()))


@torch.inference_mode()
def test_channels_last_and_copies():
    model, x = tiny().double(), images(dtype=torch.float64)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
    model = model.to(memory_format=torch.channels_last)
    assert close(model(x.to(memory_format=torch.channels_last)), expected, 1e-12)


@torch.inference_mode()
def test_sync_batchnorm_conversion_changes_nothing():
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm):
        converted = convert(tiny())
        assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
        assert torch.equal(converted(images()), tiny()(images()))


@torch.inference_mode()
def test_deploy():
    model = tiny(num_classes=10)
    expected = model(images())
    deployed = timm_sk.deploy(model, input_size=(3, 64, 64), batch_size=2, compile=False)
    assert close(deployed(images()), expected)
    assert not any(key.startswith('patch_embed') and 'norm' in key for key in deployed.model.state_dict())


@pytest.mark.deep
def test_compile_takes_the_whole_graph():
    model, x = tiny().double(), images(dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.inference_mode():
        assert close(compiled(x), model(x), 1e-11)
    model.train()
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.deep
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_export_trace_and_fx():
    model, x = tiny().double(), images(3).double()
    dynamic = ({0: torch.export.Dim('batch')},)
    for converted in (
        torch.export.export(model, (images().double(),), dynamic_shapes=dynamic).module(),
        torch.jit.trace(model, images().double()),
        torch.fx.symbolic_trace(model),
    ):
        assert close(converted(x), model(x), 1e-11)
