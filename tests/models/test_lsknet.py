"""LSKNet: the makers' outputs, the selection written out, and its own arguments."""

import pytest
import timm
import timm.models
import timm.optim
import torch
import torch.fx
import torch.nn.functional as F
from oracles import load_oracle
from timm_pair import assert_same
from torch import nn
from variants import LSK, blocks_of, distance, filled, images, shallow

import timm_sk
from timm_sk.layers.large_selective_kernel import LargeSelectiveKernel

pytestmark = pytest.mark.deep

PARAMS = {'lsknet_t': (3_990_190, 4_247_190), 'lsknet_s': (13_840_892, 14_353_892)}


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


@pytest.mark.parametrize('name', PARAMS)
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
    assert distance(unit(x), expected) <= 1e-6
    with pytest.raises(ValueError, match='channels must be even, got 7'):
        LargeSelectiveKernel(7)


@torch.inference_mode()
def test_every_tensor_changes_the_output():
    model = filled(LSK, num_classes=10)
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


def test_sizes_of_odd_images():
    backbone = timm.create_model('lsknet_s', features_only=True, device='meta')
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert [f.shape[1:] for f in backbone(torch.empty(2, 3, 65, 97, device='meta'))] == [
        (64, 17, 25),
        (128, 9, 13),
        (320, 5, 7),
        (512, 3, 4),
    ]


def test_drop_rates():
    model = filled(LSK, drop_path_rate=0.4, proj_drop_rate=0.2)
    assert torch.equal(model(images()), filled(LSK)(images()))
    blocks = blocks_of(model)
    assert [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert all(block.mlp.drop1.p == block.mlp.drop2.p == 0.2 for block in blocks)


def test_patch_embedding_is_grouped_with_its_stage():
    model = shallow(LSK, device='meta')
    for coarse in (True, False):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)  # group by parameter
        assert groups['patch_embed3.proj.weight'] == groups['block3.0.mlp.fc1.weight'] > groups['block2.1.norm1.weight']


def test_checkpointed_blocks_run_again_in_the_backward_pass():
    for enable in (False, True):
        model, calls = filled(LSK), []
        model.set_grad_checkpointing(enable)
        model.block2[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(images()).sum().backward()
        assert len(calls) == 1 + enable


def test_refused_arguments():
    for unknown in ('num_class', 'output_stride'):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
            timm.create_model('lsknet_t', **{unknown: 8})


@torch.inference_mode()
def test_deploy():
    model = filled(LSK, num_classes=10)
    expected = model(images())
    deployed = timm_sk.deploy(model, input_size=(3, 64, 64), batch_size=2, compile=False)
    assert distance(deployed(images()), expected) <= 1e-5
    assert not any(key.startswith('patch_embed') and 'norm' in key for key in deployed.model.state_dict())


@torch.no_grad()
def test_symbolic_trace():
    model, x = filled(LSK).double(), images().double()
    assert_same(torch.fx.symbolic_trace(model)(x), model(x), 1e-11)
