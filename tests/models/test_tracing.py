"""Compilers and tracers take the models whole and change no value."""

import io

import pytest
import torch
import torch.fx
from tiers import deep_except
from timm_pair import assert_same, each_family, each_form, each_net, in_form, pair, run_step
from torch import Tensor, nn
from variants import CIFAR, LSK, LUCID_NAMES, MOBILE, ONE_PER_BLOCK, RESNESTS, SHUFFLE, TRUNKS, filled, images, units_of

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
    CIFAR,
    SHUFFLE,
    MOBILE,
    LSK,
]
EXACT = 1e-11


def exact(name: str, **kwargs: object) -> nn.Module:
    """Our shallow model in float64: how far float32's rounding is amplified depends on the processor."""
    return filled(name, **kwargs).double()


def exact_images(count: int = 2, size: int = 64) -> Tensor:
    return images(count, size=size, dtype=torch.float64)


@pytest.mark.parametrize('name', deep_except(['resnest50d_4s2x40d'], COMPILED))
def test_compile_without_graph_breaks(name):
    model = exact(name)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.inference_mode():
        assert_same(compiled(exact_images()), model(exact_images()), EXACT)
    model.train()
    gradients = []
    for forward in (compiled, model):
        model.zero_grad()
        forward(exact_images()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    # together, since a bias before a norm has a gradient of nothing but rounding
    found, expected = (torch.cat([gradient.flatten() for gradient in side]) for side in gradients)
    tolerance = 1e-6 if name in (SHUFFLE, MOBILE) else 1e-10  # their many norms of few values amplify rounding
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.deep
def test_inductor():
    model = filled('sknet_atto')
    with torch.inference_mode():
        assert_same(torch.compile(model, fullgraph=True)(images(size=32)), model(images(size=32)), 1e-5)


@pytest.mark.parametrize('name', deep_except(['sknet_atto', 'resnest50d_4s2x40d'], COMPILED))
def test_export_with_dynamic_batch(name):
    model = exact(name)
    batch = torch.export.Dim('batch')
    exported = torch.export.export(model, (exact_images(),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 2, 5):
        with torch.inference_mode():
            assert_same(exported(exact_images(count)), model(exact_images(count)), EXACT)


@pytest.mark.deep
@each_net
@each_form
@torch.no_grad()
def test_exported_forms(name, form):
    ours, theirs = pair(name)
    x, batch = exact_images(2, 32), torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(in_form(ours, form), (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for run in (program.module(), torch.export.load(file).module()):
        for count in (1, 3, 8):
            assert_same(run(exact_images(count, 32)), theirs(exact_images(count, 32)))


@pytest.mark.deep
@each_family
def test_exported_training(name):
    """A program for training, as torchao's quantisation-aware training takes it, moves running statistics too."""

    def transform(model: nn.Module) -> list[dict[str, Tensor]]:
        shapes = ({0: torch.export.Dim('batch', min=2, max=64)},)
        program = torch.export.export(model, (exact_images(2, 32),), dynamic_shapes=shapes).module()
        return [run_step(program, exact_images(count, 32)) for count in (3, 5)]

    assert_same(*map(transform, pair(name, training=True)))


@pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK, [*ONE_PER_BLOCK, CIFAR, SHUFFLE, MOBILE, LSK]))
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_trace(name):
    kwargs: dict[str, object] = dict(drop_path_rate=0.1) if name in ONE_PER_BLOCK else {}
    if kwargs and name not in RESNESTS:
        kernels = (
            dict(kernel_sizes=[1, 3, 7]) if name in LUCID_NAMES else dict(kernel_size=[3, 5, 7], split_input=False)
        )
        kwargs['block_args'] = dict(attn_layer='se', sk_kwargs=kernels)
    model = exact(name, **kwargs)
    traced = torch.jit.trace(model, exact_images())
    assert_same(traced(exact_images(3)), model(exact_images(3)), EXACT)


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d'])
def test_script_names_the_replacement(name):
    with pytest.raises(NotImplementedError, match=r'does not support \w+: use torch\.export\.export'):
        torch.jit.script(exact(name))


def test_batch_of_one_in_a_graph_recorded_in_train_mode():
    graph = torch.fx.symbolic_trace(exact('sknet_atto').train()).eval()
    with torch.inference_mode():
        assert_same(graph(exact_images(1)), exact('sknet_atto')(exact_images(1)), EXACT)


@pytest.mark.parametrize('name', deep_except([*ONE_PER_BLOCK, CIFAR], TRUNKS))
def test_symbolic_trace(name):
    model = exact(name)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == 'call_function']
    assert called.count('fuse') == called.count('select') == len(units_of(model)) > 0
    with torch.inference_mode():
        assert_same(traced(exact_images()), model(exact_images()), EXACT)
