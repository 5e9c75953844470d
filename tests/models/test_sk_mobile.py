"""The lightweight nets: plain copies against their origins, units against the core layer, and their own arguments."""

import runpy

import pytest
import timm
import timm.layers
import timm.models
import torch
import torchvision.models
from random_weights import fill_model
from subprocesses import ROOT
from timm_pair import assert_differs, assert_same
from torch import Tensor, nn
from variants import MOBILE, SHUFFLE, filled, images, units_of

import timm_sk

pytestmark = pytest.mark.deep

ORIGINS = {
    'sk_shufflenetv2_x0_5': torchvision.models.shufflenet_v2_x0_5,
    'sk_shufflenetv2_x1_0': torchvision.models.shufflenet_v2_x1_0,
    'sk_mobilenetv2_100': timm.models.mobilenetv2_100,
}
each_name = pytest.mark.parametrize('name', ORIGINS)
each_trunk = pytest.mark.parametrize('name', [SHUFFLE, MOBILE])


@each_name
def test_plain_net_is_the_original(name):
    original = fill_model(ORIGINS[name]())
    model = timm.create_model(name, unit='plain')
    assert list(model.state_dict()) == list(original.state_dict())
    model.load_state_dict(original.state_dict())

    def run(net: nn.Module) -> Tensor:
        torch.manual_seed(0)
        return net(images())

    for training in (False, True):
        assert_same(run(model.train(training)), run(original.train(training)), 1e-6)


@each_name
def test_units_leave_other_parameters_alone(name):
    original = {key: tensor.shape for key, tensor in ORIGINS[name]().state_dict().items()}
    depthwise = sum(shape[1:] == (1, 3, 3) for shape in original.values())
    for unit, marks in (('sk', ('.sk.', '.conv_dw.')), ('se', ('.se.',))):
        model = timm.create_model(name, unit=unit, device='meta')
        own = {key: tensor.shape for key, tensor in model.state_dict().items()}
        kept = own.keys() & original.keys()
        assert all(own[key] == original[key] for key in kept)
        assert all(any(mark in key for mark in marks) for key in own.keys() - kept)
        assert sum(shape[1:] == (1, 3, 3) for shape in own.values()) == depthwise * (2 if unit == 'sk' else 1)
        assert len(units_of(model)) == (depthwise if unit == 'sk' else 0)
        assert sum(isinstance(m, timm.layers.SqueezeExcite) for m in model.modules()) == depthwise * (unit == 'se')


@each_trunk
@torch.inference_mode()
def test_units_are_the_core_layer(name):
    model = filled(name)
    calls = {}
    for path, unit in units_of(model).items():
        unit.register_forward_hook(lambda _, x, y, path=path: calls.update({path: (x[0].clone(), y.clone())}))
    model(images())
    for path, unit in units_of(model).items():
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
            assert_differs(found, core(x))
    widths = {unit.attn.fc_reduce.out_channels for unit in units_of(model).values()}
    assert widths == ({32, 36, 60} if name == MOBILE else {32})


@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_dilations_of_mobilenetv2(output_stride):
    model = timm.create_model(MOBILE, output_stride=output_stride, device='meta')
    original = timm.models.mobilenetv2_100(output_stride=output_stride)
    for path, unit in units_of(model).items():
        depthwise = original.get_submodule(path)
        dilation = depthwise.dilation[0]
        assert [branch.conv.dilation[0] for branch in unit.paths] == [dilation, 2 * dilation]
        assert all(branch.conv.stride == depthwise.stride for branch in unit.paths)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'error', 'message'),
    [
        (SHUFFLE, dict(output_stride=16), ValueError, 'supports output_stride=32 only, got 16'),
        (SHUFFLE, dict(unit='cbam'), ValueError, 'unit must be one of sk, se, plain, got "cbam"'),
        (MOBILE, dict(unit='cbam'), ValueError, 'unit must be one of sk, se, plain, got "cbam"'),
        (MOBILE, dict(pad_type='same'), ValueError, 'padded symmetrically, got pad_type="same"'),
        (SHUFFLE, dict(num_class=3), TypeError, 'num_class'),
        (MOBILE, dict(num_class=3), TypeError, 'num_class'),
    ],
)
def test_wrong_arguments(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        timm.create_model(name, **kwargs)


def test_drop_path_of_mobilenetv2():
    dropping = timm.create_model(MOBILE, drop_path_rate=0.3)
    assert sum(isinstance(m, timm.layers.DropPath) for m in dropping.modules()) == 16


@each_trunk
@pytest.mark.parametrize('unit', ['se', 'plain'])
@torch.inference_mode()
def test_arguments_of_the_other_units(name, unit):
    model = timm.create_model(name, unit=unit, act_layer='silu', norm_layer='groupnorm1').eval()
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.ReLU, nn.ReLU6, nn.BatchNorm2d, timm.layers.BatchNormAct2d}
    assert model(images(count=1)).isfinite().all()
    model = timm.create_model(name, unit=unit, device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    assert model(images(dtype=torch.bfloat16).to('meta')).shape == (2, 1000)


def test_batchnorm_arguments_of_mobilenetv2():
    model = timm.create_model(MOBILE, bn_eps=1e-3, bn_momentum=0.01)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_table_of_the_document():
    script = runpy.run_path(str(ROOT / 'docs' / 'lightweight.py'))
    document = (ROOT / 'docs' / 'lightweight.md').read_text()
    assert script['table']() in document
    assert script['training_table']() in document
    assert '149.30 M' in script['table']()
