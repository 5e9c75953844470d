"""Units whose fuse and select are kernels: trained, evaluated, folded, compiled, with hooks."""

import copy

import pytest
import timm
import torch
from kernel_cases import DEVICE, exact, launched
from random_weights import fill_model, make_input
from torch import nn

import timm_sk
from timm_sk.models.sknet import StackedSelectiveKernel
from timm_sk.models.sknet_upstreams import SigmoidSelectiveKernel

X = make_input((3, 8, 3, 5)).to(DEVICE)
TRAINED = dict(fuse=1, select=1, select_backward=1, gate_backward=1)
UNITS = {
    'two paths': lambda: timm_sk.SelectiveKernel(8, 12),
    'three paths': lambda: timm_sk.SelectiveKernel(8, 12, [3, 5, 7], stride=2, split_input=False),
    'one path': lambda: timm_sk.SelectiveKernel(8, 12, [3], split_input=False),
    'sigmoid attention': lambda: SigmoidSelectiveKernel(8, 12),
    'radix 1': lambda: timm_sk.SplitAttention(8, 12, radix=1, groups=2),
    'radix 2': lambda: timm_sk.SplitAttention(8, 12, groups=2),
    'radix 4': lambda: timm_sk.SplitAttention(8, 8, radix=4, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU6),
}


def make_unit(name: str) -> nn.Module:
    return fill_model(UNITS[name]()).to(DEVICE).eval()


def folded(unit: nn.Module) -> nn.Module:
    return timm.utils.reparameterize_model(nn.Sequential(copy.deepcopy(unit).eval()))[0]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ('train', 'layout'), [(True, torch.channels_last), (False, torch.contiguous_format)], ids=['train', 'eval']
)
@pytest.mark.parametrize('name', UNITS)
def test_gradients(name, train, layout):
    unit = make_unit(name).train(train)
    copied = copy.deepcopy(unit).double()  # not supported by the kernels
    x = X.clone(memory_format=layout).requires_grad_()
    with launched(**TRAINED):
        output = unit(x)
        output.sin().sum().backward()
    (exact_x,) = exact([x])
    with launched():
        expected = copied(exact_x)
        expected.sin().sum().backward()
    assert close(output, expected)
    assert close(x.grad, exact_x.grad, 1e-4)
    for (key, ours), wanted in zip(unit.named_parameters(), copied.parameters(), strict=True):
        # of a bias before a norm only rounding is left
        assert close(ours.grad, wanted.grad, 2e-3 if train else 1e-4), key
    for ours, wanted in zip(unit.buffers(), copied.buffers(), strict=True):
        assert close(ours, wanted.double())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels last'])
@pytest.mark.parametrize('name', UNITS)
@torch.no_grad()
def test_folded_convolutions_defer_their_epilogue(name, layout):
    unit = make_unit(name)
    expected = copy.deepcopy(unit).double()(X.double())
    x = X.contiguous(memory_format=layout)
    with launched(fuse_bias_act=1, select_bias_act=1):
        output = folded(unit)(x)
    assert close(output, expected)
    assert output.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('name', ['two paths', 'radix 2'])
@torch.no_grad()
def test_folded_units_compile_into_one_graph(name):
    unit = make_unit(name)
    compiled = torch.compile(folded(unit), fullgraph=True, backend='aot_eager')
    with launched(fuse_bias_act=1, select_bias_act=1):
        output = compiled(X)
    assert close(output, unit.double()(X.double()))


@torch.no_grad()
def test_merged_groups_defer_their_epilogue():
    unit = folded(fill_model(timm_sk.SelectiveKernel(8, 12, groups=4)).to(DEVICE))
    expected = copy.deepcopy(unit).double()(X.double())
    for path in unit.paths:
        path.conv.merge(2)
    with launched(fuse_bias_act=1, select_bias_act=1):
        assert close(unit(X), expected)


@pytest.mark.parametrize('name', ['two paths', 'radix 2'])
def test_hooks_see_complete_branches(name):
    unit = folded(make_unit(name))
    expected = copy.deepcopy(unit).double()(X.double())
    seen = []
    watched = unit.paths[0] if name == 'two paths' else unit.conv
    handle = watched.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad(), launched(fuse=1, select=1):
        assert close(unit(X), expected)
    assert seen[0].min() == 0  # after the activation
    handle.remove()
    with launched(**TRAINED):
        output = unit(X.clone().requires_grad_())
        output.sum().backward()
    assert close(output, expected)


@torch.no_grad()
def test_units_without_deferred_epilogue():
    plain = fill_model(timm_sk.SelectiveKernel(8, 12, attention=False)).to(DEVICE).eval()
    silu = fill_model(timm_sk.SelectiveKernel(8, 12, act_layer=nn.SiLU)).to(DEVICE).eval()
    stacked = fill_model(StackedSelectiveKernel(8, 12)).to(DEVICE).eval()
    for unit, expected in ((plain, {}), (silu, dict(fuse=1, select=1)), (stacked, dict(fuse=1, select=1))):
        with launched(**expected):
            output = folded(unit)(X)
        assert close(output, unit.double()(X.double()))


@pytest.mark.parametrize('name', ['two paths', 'radix 2'])
@torch.no_grad()
def test_folded_units_export_and_trace_without_kernels(name):
    unit = folded(make_unit(name))
    expected = copy.deepcopy(unit).double()(X.double())
    with launched():
        exported = torch.export.export(unit, (X,)).module()
        assert close(exported(X), expected)
        traced = torch.fx.symbolic_trace(unit)
    with launched(fuse=1, select=1):
        assert close(traced(X), expected)


@torch.no_grad()
def test_deployed_model():
    model = timm.create_model('sknet_atto.digits', pretrained=True).to(DEVICE).eval()
    images = make_input((1, 3, 16, 16)).to(DEVICE)
    expected = copy.deepcopy(model).double()(images.double())
    deployed = timm_sk.deploy(model, input_size=(3, 16, 16), compile=False, merge_groups=False)
    units = sum(isinstance(module, timm_sk.SelectiveKernel) for module in model.modules())
    with launched(fuse_bias_act=units, select_bias_act=units):
        assert close(deployed(images), expected, 1e-4)
