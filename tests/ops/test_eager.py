"""The eager fuse and select against the reference: values, two orders of gradients, what autograd saves."""

import copy

import pytest
import torch
from random_weights import fill_model, make_input
from torch import Tensor, nn

import timm_sk
from timm_sk.bench.memory import saved_bytes
from timm_sk.ops import Branches, eager, reference, runs_eagerly

KINDS = [
    (1, 1, 'softmax'),
    (1, 1, 'sigmoid'),
    (2, 1, 'softmax'),
    (3, 1, 'softmax'),
    (2, 2, 'softmax'),
    (4, 4, 'softmax'),
]


def make_norms(count: int, channels: int, train: bool) -> list[nn.BatchNorm2d]:
    return [fill_model(nn.BatchNorm2d(channels)).double().train(train) for _ in range(count)]


def run(kind: str, sources: list[Tensor], norms: list[nn.BatchNorm2d], mixer: Tensor, radix: int, gate: str) -> Tensor:
    """Norm, ReLU, fuse, a stand-in for the attention, select; `kind` is 'reference', 'recompute' or 'store'."""
    if kind == 'reference':
        branches = [branch for s, n in zip(sources, norms, strict=True) for branch in n(s).relu().chunk(radix, dim=1)]
        fuse, select = reference.fuse, reference.select
    else:
        tensors, states = zip(*map(eager.batch_norm_relu, sources, norms), strict=True)
        branches = Branches(tensors, radix, states=states if kind == 'recompute' else ())
        fuse, select = eager.fuse, eager.select
    logits = (fuse(branches) @ mixer).tanh().unflatten(1, (len(sources) * radix, -1))
    return select(branches, logits, gate)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize(('count', 'radix', 'gate'), KINDS)
def test_two_orders_of_gradients(count, radix, gate, train):
    sources = [make_input((3, 4 * radix, 3, 2)).double().add(m).requires_grad_() for m in range(count // radix)]
    mixer = make_input((4, 4 * count)).double().requires_grad_()
    found = {}
    for kind in ('reference', 'recompute', 'store'):
        norms = make_norms(len(sources), 4 * radix, train)
        inputs = [*sources, mixer, *(parameter for norm in norms for parameter in norm.parameters())]
        output = run(kind, sources, norms, mixer, radix, gate)
        # without a graph memory is written in place, with one it is not
        in_place = torch.autograd.grad(output.sin().sum(), inputs, retain_graph=True)
        with_graph = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in with_graph), inputs)
        statistics = [buffer.double() for norm in norms for buffer in norm.buffers()][:2]
        found[kind] = [output, *in_place, *with_graph, *second, *statistics]
    for kind in ('recompute', 'store'):
        for ours, expected in zip(found[kind], found['reference'], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('make', [lambda: timm_sk.SelectiveKernel(16), lambda: timm_sk.SplitAttention(16)])
def test_empty_batch_and_single_pixel(make, train):
    layer = fill_model(make()).train(train)
    before = {key: buffer.clone() for key, buffer in layer.named_buffers() if 'running' in key}
    nothing = torch.ones(0, 16, 4, 4, requires_grad=True)
    if train:
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            layer(torch.ones(1, 16, 1, 1))
    else:
        layer(nothing).sum().backward()
        assert nothing.grad.shape == nothing.shape
    assert all(torch.equal(layer.get_buffer(key), buffer) for key, buffer in before.items())


def test_branches_of_two_dtypes_are_promoted():
    branches = [make_input((2, 3, 4, 5)), make_input((2, 3, 4, 5), seed=1).double()]
    logits = make_input((2, 2, 3))
    exact = [branch.double() for branch in branches]
    torch.testing.assert_close(timm_sk.ops.fuse(branches), reference.fuse(exact))
    torch.testing.assert_close(timm_sk.ops.select(branches, logits).double(), reference.select(exact, logits.double()))


@torch.no_grad()
@pytest.mark.parametrize('is_global', [True, False])
def test_hooks_see_complete_branches(is_global):
    layer, seen = fill_model(timm_sk.SelectiveKernel(16)).eval(), []
    x = make_input((2, 16, 5, 5))
    expected = layer(x)

    def look(module: nn.Module, _: object, output: Tensor) -> None:
        if module in layer.paths:
            seen.append((output, output.clone()))

    register = nn.modules.module.register_module_forward_hook
    handles = [register(look)] if is_global else [path.register_forward_hook(look) for path in layer.paths]
    try:
        assert torch.equal(layer(x), expected)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == 2
    assert all(torch.equal(output, copied) for output, copied in seen)


@pytest.mark.parametrize(
    ('make', 'planes'),
    [
        # the input and a convolution's output per branch
        (lambda: timm_sk.SelectiveKernel(16, split_input=False), 1 + 2),
        (lambda: timm_sk.SplitAttention(16, radix=2), 1 + 2),
    ],
)
def test_autograd_saves_only_the_convolutions_output(make, planes):
    layer = fill_model(make()).train()
    x = make_input((4, 16, 32, 32)).requires_grad_()
    plane = x.untyped_storage().nbytes()
    small = plane // 16  # the attention's and the norms' values
    own = layer.state_dict().values()
    assert planes * plane <= saved_bytes(lambda: layer(x), excluded=own) <= planes * plane + small
    watched = copy.deepcopy(layer)
    branch = watched.paths[0] if hasattr(watched, 'paths') else watched.bn0
    branch.register_forward_hook(lambda *_: None)  # so all modules of the branch are called
    assert saved_bytes(lambda: watched(x), excluded=watched.state_dict().values()) >= (planes + 2) * plane


def test_autocast_in_bfloat16():
    layer = fill_model(timm_sk.SelectiveKernel(16)).train()
    x = make_input((4, 16, 9, 9)).requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            output = layer(x)
        results.append([output.float(), *torch.autograd.grad(output.float().sin().sum(), [x, *layer.parameters()])])
    assert all(tensor.dtype == torch.float32 for tensor in results[1])
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() <= 0.1 * exact.norm()


def test_transformed_tensors_are_not_eager():
    x = torch.randn(2, 3)
    assert runs_eagerly(x)
    assert runs_eagerly(nn.Parameter(x), None)
    inside = []
    torch.func.vmap(lambda row: inside.append(runs_eagerly(row)) or row)(x)
    torch.func.jvp(lambda value: inside.append(runs_eagerly(value)) or value, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        inside.append(runs_eagerly(torch.autograd.forward_ad.make_dual(x, x)))
    assert inside == [False, False, False]


def test_in_place_selection():
    branches, logits = [torch.randn(2, 4, 3, 3) for _ in range(2)], torch.randn(2, 2, 4)
    before = [branch.clone() for branch in branches]
    expected = reference.select(branches, logits)
    for private, in_place in ((False, True), (True, False)):
        with torch.no_grad():
            selected = timm_sk.ops.select(Branches(branches, private=private), logits, in_place=in_place)
        torch.testing.assert_close(selected, expected)
    torch.testing.assert_close(timm_sk.ops.select(Branches(branches, private=True), logits, in_place=True), expected)
    assert all(map(torch.equal, branches, before))
    with torch.no_grad():
        selected = timm_sk.ops.select(Branches(branches, private=True), logits, in_place=True)
    torch.testing.assert_close(selected, expected)
    assert not torch.equal(branches[1], before[1])


@pytest.mark.parametrize('memory_format', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_spatial_mean(dtype, memory_format):
    x = make_input((2, 6, 30, 20)).to(dtype).contiguous(memory_format=memory_format)
    expected = x.double().mean(dim=(2, 3))
    found = eager.spatial_mean(x, nhwc=memory_format is torch.channels_last).double()
    assert (found - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_eval_mode_gradients_in_bfloat16():
    norm = fill_model(nn.BatchNorm2d(8)).eval()
    norm.running_var.uniform_(0.01, 9)
    source, grad = make_input((4, 8, 6, 6)), make_input((4, 8, 6, 6), seed=1)

    def gradient(run, dtype: torch.dtype) -> Tensor:
        given = source.to(dtype).requires_grad_()
        run(given, copy.deepcopy(norm).to(dtype)).backward(grad.to(dtype))
        return given.grad.double()

    exact = gradient(lambda x, norm: norm(x).relu(), torch.float64)
    theirs, ours = (
        (gradient(run, torch.bfloat16) - exact).norm()
        for run in (lambda x, norm: norm(x).relu(), lambda x, norm: eager.batch_norm_relu(x, norm)[0])
    )
    assert ours <= 1.05 * theirs
