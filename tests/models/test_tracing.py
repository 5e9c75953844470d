"""Compilers and tracers take the models whole and change no value."""

import pytest
import torch
import torch.fx
from variants import KINDS, LUCID_NAMES, ONE_PER_BLOCK, RESNESTS, filled, pictures


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('name', KINDS)
def test_compile_takes_the_whole_graph(name):
    model = filled(name)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.inference_mode():
        assert_same(compiled(pictures()), model(pictures()))
    model.double().train()
    gradients = []
    for forward in (compiled, model):
        model.zero_grad()
        forward(pictures(dtype=torch.float64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    # together, since a bias before a norm has a gradient of nothing but rounding
    found, expected = (torch.cat([gradient.flatten() for gradient in side]) for side in gradients)
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize('name', ['sknet_atto'])
def test_inductor(name):
    model = filled(name)
    with torch.inference_mode():
        assert_same(torch.compile(model, fullgraph=True)(pictures(size=32)), model(pictures(size=32)))


@pytest.mark.parametrize('name', KINDS)
def test_export_with_dynamic_batch(name):
    model = filled(name)
    exported = torch.export.export(model, (pictures(),), dynamic_shapes=({0: torch.export.Dim('batch')},)).module()
    for count in (1, 2, 5):
        with torch.inference_mode():
            assert_same(exported(pictures(count)), model(pictures(count)))


@pytest.mark.parametrize('name', ONE_PER_BLOCK)
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_script_and_trace(name):
    sk_kwargs = dict(kernel_sizes=[1, 3, 7]) if name in LUCID_NAMES else dict(kernel_size=[3, 5, 7], split_input=False)
    block_args = {} if name in RESNESTS else dict(block_args=dict(attn_layer='se', sk_kwargs=sk_kwargs))
    model = filled(name, drop_path_rate=0.1, **block_args)
    for converted in (torch.jit.script(model), torch.jit.trace(model, pictures())):
        assert_same(converted(pictures(3)), model(pictures(3)))


@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
def test_a_graph_recorded_in_train_mode_serves_one_picture():
    graph = torch.fx.symbolic_trace(filled('sknet_atto').train()).eval()
    with torch.inference_mode():
        assert_same(graph(pictures(1)), filled('sknet_atto')(pictures(1)))


@pytest.mark.parametrize('name', KINDS)
def test_fx(name):
    model = filled(name)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == 'call_function']
    units = sum(key.endswith(('attn.fc_select.weight', 'conv2.fc2.weight')) for key in model.state_dict())
    assert called.count('fuse') == called.count('select') == units
    with torch.inference_mode():
        assert_same(traced(pictures()), model(pictures()))
