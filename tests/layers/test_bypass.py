"""The guard of all shortcuts: hooks, patches, attributes of norms."""

import copy
import runpy
from itertools import product
from types import SimpleNamespace

import pytest
import timm.layers
import torch
from random_weights import fill_model, make_input
from torch import nn

import timm_sk
from timm_sk.layers.bypass import can_bypass


def make_unit(**kwargs) -> timm_sk.SelectiveKernel:
    return fill_model(timm_sk.SelectiveKernel(16, **kwargs))


def test_class_from_a_script(tmp_path):
    (tmp_path / 'act.py').write_text(
        'from torch import nn\nclass Act(nn.ReLU):\n    def forward(self, x):\n        return 2 * x\n'
    )
    act = runpy.run_path(str(tmp_path / 'act.py'))['Act']
    unit = make_unit(act_layer=act).train()
    assert not can_bypass(unit)
    assert unit(make_input((2, 16, 5, 5))).shape == (2, 16, 5, 5)


def test_compiled_submodule():
    unit, graphs = make_unit().eval(), []
    unit.paths[0].bn.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        unit(make_input((2, 16, 5, 5)))
    assert len(graphs) == 1


@pytest.mark.parametrize(('kind', 'method'), [(nn.ReLU, 'forward'), (nn.ReLU, '__call__'), (nn.Module, '_call_impl')])
@pytest.mark.parametrize('train', [False, True])
def test_methods_patched_on_a_class(monkeypatch, kind, method, train):
    unit, calls = make_unit().train(train), []
    original = getattr(kind, method)

    def patched(self, *args, **kwargs):
        calls.append(type(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, patched)
    unit(make_input((2, 16, 5, 5)))
    assert calls.count(nn.ReLU) == 3  # of two branches and the attention


def test_forward_of_another_class(monkeypatch):
    monkeypatch.setattr(nn.ReLU, 'forward', nn.Tanh.forward)
    assert not can_bypass(nn.ReLU())
    assert can_bypass(nn.Tanh())


@torch.no_grad()
def test_identity_branch_does_not_overwrite_the_input():
    unit = make_unit(split_input=False).eval()
    unit.paths[1].conv = unit.paths[1].bn = unit.paths[1].act = nn.Identity()
    x = make_input((2, 16, 5, 5))
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)


@torch.no_grad()
@pytest.mark.parametrize('radix', [2, 4])
def test_selection_of_packed_branches_is_dense(radix):
    layer = fill_model(timm_sk.SplitAttention(16, radix=radix)).eval()
    out = layer(make_input((2, 16, 5, 5)))
    assert out.is_contiguous()
    assert out.untyped_storage().nbytes() == out.numel() * out.element_size()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('make', [make_unit, lambda: fill_model(timm_sk.SplitAttention(16))])
def test_batched_gradients_in_half_precision(make, dtype):
    layer = make().eval().to(dtype=dtype, memory_format=torch.channels_last)
    x = make_input((2, 16, 5, 5)).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    vectors = make_input((3, *y.shape)).to(dtype)
    (batched,) = torch.autograd.grad(y, x, vectors, is_grads_batched=True, retain_graph=True)
    for vector, found in zip(vectors, batched, strict=True):
        (expected,) = torch.autograd.grad(y, x, vector, retain_graph=True)
        assert (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('with_grad', [False, True])
def test_forward_derivative_of_a_norms_weight(train, with_grad):
    unit = make_unit().double().train(train)
    x, weight = make_input((2, 16, 5, 5)).double(), unit.paths[0].bn.weight.detach().clone()
    tangent = make_input((16,)).double()

    def run(weight):
        return torch.func.functional_call(unit, {'paths.0.bn.weight': weight}, (x,))

    with torch.set_grad_enabled(with_grad), torch.autograd.forward_ad.dual_level():
        dual = run(torch.autograd.forward_ad.make_dual(weight, tangent))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    with torch.no_grad():
        expected = (run(weight + 1e-6 * tangent) - run(weight - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


ATTRIBUTES = dict(
    track_running_stats=[True, False],
    running=[True, False],
    momentum=[0.1, 0.0, None],
    affine=[True, False],
    counted=[True, False],
    training=[True, False],
    with_grad=[True, False],
)


def run_with_attributes(unit: nn.Module, given: SimpleNamespace) -> list[torch.Tensor | None]:
    """Output, buffers and gradients of a unit whose branches' norms have these attributes."""
    for norm in (path.bn for path in unit.paths):
        norm.track_running_stats, norm.momentum = given.track_running_stats, given.momentum
        if not given.running:
            norm.running_mean = norm.running_var = None
        if not given.affine:
            norm.weight = norm.bias = None
        if not given.counted:
            norm.num_batches_tracked = None
    x = make_input((3, 8, 5, 4)).double().requires_grad_(given.with_grad)
    with torch.set_grad_enabled(given.with_grad):
        out = unit.train(given.training)(x)
    gradients = torch.autograd.grad(out.sin().sum(), [x, *unit.parameters()]) if given.with_grad else ()
    return [out.detach(), *unit.buffers(), *gradients]


def test_every_combination_of_a_norms_attributes():
    """As timm's unit, in train and eval mode, with and without gradients."""
    originals = [make(8, rd_divisor=4).double() for make in (timm_sk.SelectiveKernel, timm.layers.SelectiveKernel)]
    originals[1].load_state_dict(fill_model(originals[0]).state_dict())
    for values in product(*ATTRIBUTES.values()):
        given = SimpleNamespace(**dict(zip(ATTRIBUTES, values, strict=True)))
        ours, theirs = (run_with_attributes(copy.deepcopy(unit), given) for unit in originals)
        for found, expected in zip(ours, theirs, strict=True):
            bound = 1e-10 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found, expected, rtol=0, atol=bound, msg=str(given))
