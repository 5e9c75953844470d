"""Compilers and tracers take the models whole and change no value."""

import pytest
import torch
import torch.fx
from tiers import deep_except
from torch import nn
from variants import KINDS, LUCID_NAMES, ONE_PER_BLOCK, RESNESTS, filled, images


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# Each block, and each way in which others' nets differ inside one; other widths and groups are the same graph.
COMPILED = [
    *ONE_PER_BLOCK,
    'sknet50_3path',
    'skresnet50d',
    'sknet50_holocron',
    'skresnet50_insight',
    'skresnet18_mindcv',
    'resnest50d_1s1x64d',
    'resnest50_mindcv',
]


def exact(name: str, **kwargs: object) -> nn.Module:
    """Our shallow model in float64: how far float32's rounding is amplified depends on the processor."""
    return filled(name, **kwargs).double()


def exact_pictures(count: int = 2) -> torch.Tensor:
    return images(count, dtype=torch.float64)


@pytest.mark.parametrize('name', deep_except(['resnest50d_4s2x40d'], COMPILED))
def test_compile_takes_the_whole_graph(name):
    model = exact(name)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.inference_mode():
        assert_same(compiled(exact_pictures()), model(exact_pictures()))
    model.train()
    gradients = []
    for forward in (compiled, model):
        model.zero_grad()
        forward(exact_pictures()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    # together, since a bias before a norm has a gradient of nothing but rounding
    found, expected = (torch.cat([gradient.flatten() for gradient in side]) for side in gradients)
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.deep
@pytest.mark.parametrize('name', ['sknet_atto'])
def test_inductor(name):
    model = filled(name)
    with torch.inference_mode():
        assert_same(torch.compile(model, fullgraph=True)(images(size=32)), model(images(size=32)), 1e-5)


@pytest.mark.parametrize('name', deep_except(['sknet_atto', 'resnest50d_4s2x40d'], COMPILED))
def test_export_with_dynamic_batch(name):
    model = exact(name)
    exported = torch.export.export(
        model, (exact_pictures(),), dynamic_shapes=({0: torch.export.Dim('batch')},)
    ).module()
    for count in (1, 2, 5):
        with torch.inference_mode():
            assert_same(exported(exact_pictures(count)), model(exact_pictures(count)))


@pytest.mark.parametrize('name', ONE_PER_BLOCK)
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_trace(name):
    sk_kwargs = dict(kernel_sizes=[1, 3, 7]) if name in LUCID_NAMES else dict(kernel_size=[3, 5, 7], split_input=False)
    block_args = {} if name in RESNESTS else dict(block_args=dict(attn_layer='se', sk_kwargs=sk_kwargs))
    model = exact(name, drop_path_rate=0.1, **block_args)
    traced = torch.jit.trace(model, exact_pictures())
    assert_same(traced(exact_pictures(3)), model(exact_pictures(3)))


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d'])
def test_script_names_the_replacement(name):
    with pytest.raises(NotImplementedError, match=r'does not support \w+: use torch\.export\.export'):
        torch.jit.script(exact(name))


@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
def test_a_graph_recorded_in_train_mode_serves_one_picture():
    graph = torch.fx.symbolic_trace(exact('sknet_atto').train()).eval()
    with torch.inference_mode():
        assert_same(graph(exact_pictures(1)), exact('sknet_atto')(exact_pictures(1)))


@pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK, KINDS))
def test_fx(name):
    model = exact(name)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == 'call_function']
    units = sum(key.endswith(('attn.fc_select.weight', 'conv2.fc2.weight')) for key in model.state_dict())
    assert called.count('fuse') == called.count('select') == units
    with torch.inference_mode():
        assert_same(traced(exact_pictures()), model(exact_pictures()))
