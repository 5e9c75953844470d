"""The trunk of three stages keeps timm's contract at its own strides."""

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from random_weights import fill_model
from torch import nn
from variants import images

from timm_sk.pretrained import save_safetensors

NAME = 'sknet29_16x32d'


def small(**kwargs):
    """One unit per stage, a quarter as wide."""
    return fill_model(timm.create_model(NAME, **{'layers': [1, 1, 1], 'base_width': 8, **kwargs})).eval()


@torch.no_grad()
def levels(model, x):
    outputs = [model.act1(model.bn1(model.conv1(x)))]
    for stage in (model.layer1, model.layer2, model.layer3):
        outputs.append(stage(outputs[-1].clone()))
    return outputs


def close(found, expected, tolerance=1e-5):
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


X = images(size=32)


def test_size():
    model = timm.create_model(NAME, device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_256_394
    assert len(model.layer1) == len(model.layer2) == len(model.layer3) == 3
    assert [info['reduction'] for info in model.feature_info] == [1, 1, 2, 4]
    assert [info['num_chs'] for info in model.feature_info] == [64, 256, 512, 1024]
    unit = model.layer1[0].conv2
    assert [(p.conv.groups, p.conv.dilation[0], p.conv.out_channels) for p in unit.paths] == [
        (32, 1, 512),
        (32, 2, 512),
    ]
    assert timm.create_model(NAME, num_classes=100, device='meta').fc.out_features == 100


@torch.inference_mode()
def test_head_and_levels():
    model = small(drop_rate=0.2)
    expected = levels(model, X)
    assert [output.shape[-1] for output in expected] == [32, 32, 16, 8]
    assert torch.equal(model.forward_features(X), expected[-1])
    assert close(model(X), expected[-1].mean((2, 3)) @ model.fc.weight.T + model.fc.bias)
    last, found = model.forward_intermediates(X)
    assert torch.equal(last, expected[-1])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    (second,) = model.forward_intermediates(X, indices=[-2], intermediates_only=True, stop_early=True)
    assert torch.equal(second, expected[2])
    with pytest.raises(ValueError, match=r'features 0 \(stem\) to 3, got indices \[4\]'):
        model.forward_intermediates(X, indices=[4])
    model.reset_classifier(7, 'max')
    assert close(model(X), expected[-1].amax((2, 3)) @ model.fc.weight.T + model.fc.bias)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([2]) == [2]
    assert torch.equal(pruned(X), expected[2])
    assert not list(pruned.layer3.parameters())


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
@torch.inference_mode()
def test_features_only(feature_cls, tmp_path):
    model = small()
    save_safetensors(model.state_dict(), tmp_path / 'weights.safetensors')
    backbone = timm.create_model(
        NAME,
        layers=[1, 1, 1],
        base_width=8,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'weights.safetensors')),
        features_only=True,
        feature_cls=feature_cls,
    ).eval()
    found = backbone(X)
    found = list(found.values()) if isinstance(found, dict) else found
    assert all(close(a, b) for a, b in zip(found, levels(model, X), strict=True))
    assert backbone.feature_info.reduction() == [1, 1, 2, 4]


@pytest.mark.parametrize('output_stride', [2, 4])
@torch.inference_mode()
def test_output_stride(output_stride):
    model = small(output_stride=output_stride)
    reductions = [min(stride, output_stride) for stride in (1, 1, 2, 4)]
    assert [32 // output.shape[-1] for output in levels(model, X)] == reductions
    assert [info['reduction'] for info in model.feature_info] == reductions


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(output_stride=8), 'output stride 2 or 4, got 8'), (dict(layers=[1, 1]), 'three stages')],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(NAME, device='meta', **kwargs)


def test_grad_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        model = small().double().train()
        model.set_grad_checkpointing(enable)
        loss = F.cross_entropy(model(X.double()), torch.tensor([1, 2]))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.deep
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
def test_tracers_and_copies():
    model = small()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim('batch')},)).module()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    with torch.inference_mode():
        expected = model(X)
        twins = [
            torch.compile(model, fullgraph=True, backend='eager'),
            exported,
            torch.fx.symbolic_trace(model),
            copy.deepcopy(model),
            nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
            copy.deepcopy(model).to(memory_format=torch.channels_last),
        ]
        assert all(close(twin(X), expected) for twin in twins)
    assert timm.create_model(NAME, device='meta', dtype=torch.bfloat16)(X.to('meta').bfloat16()).shape == (2, 10)


def test_in_chans_act_and_norm_layer():
    model = small(in_chans=1, act_layer='silu', norm_layer='groupnorm1', drop_path_rate=0.3)
    assert not {nn.ReLU, nn.BatchNorm2d} & {type(module) for module in model.modules()}
    assert model.train()(images(1, channels=1, size=32)).isfinite().all()
    assert [block.drop_path.drop_prob for block in (model.layer2[0], model.layer3[0])] == pytest.approx([0.15, 0.3])
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(groups.values()) == {0, 1, 2, 3, 4}
