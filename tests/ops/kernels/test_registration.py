"""The operators in PyTorch: opcheck, compilation, autocast, gradient checkpointing, tracing, export."""

from functools import partial

import pytest
import torch
from kernel_cases import DEVICE, LAYOUTS, Case, branches_of, exact, launched, make_biases, make_logits, make_tensors
from random_weights import make_input
from subprocesses import run_python
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timm_sk import ops
from timm_sk.ops import kernels, reference

PLAIN = Case(2, 1, (2, 5, 3, 5), torch.float32, 'channels last')
EACH = dict(fuse=1, select=1, select_backward=1, gate_backward=1)


def unit(x: Tensor, mixer: Tensor) -> Tensor:
    """Two branches, a stand-in for the attention, and the selection."""
    branches = [x.sin(), x.cos()]
    logits = (ops.fuse(branches) @ mixer).unflatten(1, (2, -1))
    return ops.select(branches, logits)


def expected_unit(x: Tensor, mixer: Tensor) -> Tensor:
    branches = [x.sin(), x.cos()]
    return reference.select(branches, (reference.fuse(branches) @ mixer).unflatten(1, (2, -1)))


def make_inputs() -> list[Tensor]:
    return [make_input(shape).to(DEVICE).requires_grad_() for shape in ((2, 5, 3, 5), (5, 10))]


def results(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    return [output, *torch.autograd.grad(output.sin().sum(), inputs)]


def assert_agrees(function, inputs: list[Tensor]) -> None:
    for ours, expected in zip(results(function, inputs), results(expected_unit, exact(inputs)), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('case', [PLAIN, PLAIN._replace(layout='slices', radix=2)], ids=['two', 'two in one'])
def test_opcheck(case):
    from timm_sk.ops.kernels.fuse import fuse
    from timm_sk.ops.kernels.select import select, select_backward

    tensors, logits = make_tensors(case), make_logits(case)
    constants = [tensor.detach() for tensor in tensors]
    torch.library.opcheck(fuse, (tensors, case.radix, [], ''))
    torch.library.opcheck(select, (tensors, logits, 'softmax', [], ''))
    grad = torch.randn(case.shape, device=DEVICE)
    torch.library.opcheck(select_backward, (grad, constants, logits.detach(), 'sigmoid'))
    biases = make_biases(2, 5)
    torch.library.opcheck(fuse, (constants, case.radix, biases, 'relu'))
    torch.library.opcheck(select, (constants, logits.detach(), 'softmax', biases, 'relu6'))


def test_no_operator_has_default_arguments():
    """Up to torch 2.11 a backward pass may not return a gradient for an argument that the dispatcher left out."""
    for name in ('fuse', 'select', 'two_branch'):
        kernels.load(name)
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith('timm_sk::')]
    assert len(schemas) == 4
    assert not [(s.name, a.name) for s in schemas for a in s.arguments if a.has_default_value()]


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_compiles_into_one_graph(backend, dynamic):
    compiled = torch.compile(unit, fullgraph=True, backend=backend, dynamic=dynamic)
    with launched(**EACH):
        assert_agrees(compiled, make_inputs())


def test_compiled_graphs_without_kernels(monkeypatch):
    monkeypatch.setattr(kernels, 'IN_COMPILED_GRAPHS', False)
    with launched():
        assert_agrees(torch.compile(unit, fullgraph=True, backend='aot_eager'), make_inputs())


def test_autocast():
    x, mixer = make_inputs()
    convolve = nn.Conv2d(5, 5, 1).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16), launched(fuse=1, select=1, select_backward=1, gate_backward=1):
        branches = [convolve(x), convolve(x).relu()]
        selected = ops.select(branches, (ops.fuse(branches) @ mixer).unflatten(1, (2, -1)))
        assert selected.dtype is torch.bfloat16
        gradients = torch.autograd.grad(selected.float().sum(), [x, mixer, *convolve.parameters()])
    assert all(gradient.dtype is torch.float32 and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize('reentrant', [True, False])
def test_gradient_checkpointing(reentrant):
    inputs = make_inputs()

    def gradients(function) -> list[Tensor]:
        for tensor in inputs:
            tensor.grad = None
        function(*inputs).sin().sum().backward()
        return [tensor.grad for tensor in inputs]

    expected = gradients(unit)
    with launched(fuse=2, select=2, select_backward=1, gate_backward=1):
        found = gradients(partial(checkpoint, unit, use_reentrant=reentrant))
    assert all(map(torch.equal, found, expected))


def test_inference_mode():
    with torch.inference_mode(), launched(fuse=1, select=1):
        selected = unit(*make_inputs())
    torch.testing.assert_close(selected, expected_unit(*make_inputs()), rtol=0, atol=1e-5)


class Unit(nn.Module):
    def forward(self, x: Tensor, mixer: Tensor) -> Tensor:
        return unit(x, mixer)


def test_fx_leaves_stay_leaves():
    traced = torch.fx.symbolic_trace(Unit())
    leaves = [node.target for node in traced.graph.nodes if node.target in (ops.fuse, ops.select)]
    assert leaves == [ops.fuse, ops.select]
    with launched(**EACH):
        assert_agrees(traced, make_inputs())


@pytest.mark.parametrize(
    'program_of',
    [
        lambda inputs: torch.export.export(Unit(), inputs, strict=True).module(),
        lambda inputs: torch.export.export(Unit(), inputs, strict=False).module(),
        lambda inputs: torch.jit.trace(Unit(), inputs, check_trace=False),
    ],
    ids=['strict export', 'export', 'trace'],
)
@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_programs_take_the_reference(program_of):
    inputs = tuple(make_inputs())
    with launched():
        torch.testing.assert_close(program_of(inputs)(*inputs), expected_unit(*inputs), rtol=0, atol=1e-5)


def test_transforms_take_the_reference():
    x, mixer = (tensor.detach() for tensor in make_inputs())
    with launched():
        rows, compiled = (
            function(torch.stack([x, 2 * x]), mixer)
            for transform in [torch.vmap(unit, in_dims=(0, None))]
            for function in (transform, torch.compile(transform, fullgraph=True, backend='aot_eager'))
        )
        _, tangent = torch.func.jvp(lambda x: unit(x, mixer), (x,), (x,))
    torch.testing.assert_close(rows[1], expected_unit(2 * x, mixer), rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        tangent, torch.func.jvp(lambda x: expected_unit(x, mixer), (x,), (x,))[1], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ('count', 'dtype'), [(5, torch.float32), (2, torch.float64), (2, torch.int64)], ids=['five', 'double', 'whole']
)
def test_unsupported_branches_take_the_reference(count, dtype):
    branches = [(10 * make_input((2, 3, 4, 5), seed=m)).to(DEVICE, dtype) for m in range(count)]
    logits = make_input((2, count, 3)).to(DEVICE, torch.float64 if dtype is torch.float64 else torch.float32)
    with launched():
        assert not ops.runs_kernels(branches)
        if dtype.is_floating_point:
            expected = reference.fuse(branches), reference.select(branches, logits)
            torch.testing.assert_close((ops.fuse(branches), ops.select(branches, logits)), expected)


def test_mixed_dtypes_and_parameters_take_the_reference():
    x = make_inputs()[0]
    with launched():
        assert not ops.runs_kernels([x, x.half()])
        assert not ops.runs_kernels([x, x], make_logits(PLAIN).double())
        assert not ops.runs_kernels([nn.Parameter(x)])
        assert not ops.runs_kernels([x.to('meta')])
    assert ops.runs_kernels([x, x], make_logits(PLAIN).half())


def test_packed_branches_are_one_operand():
    packed = make_input((2, 10, 3, 5)).to(DEVICE).requires_grad_()
    logits = make_logits(PLAIN)
    with launched(select=1):
        selected = ops.select(ops.Branches([packed], radix=2), logits)
    assert selected.grad_fn.next_functions[0][0].variable is packed


@pytest.mark.parametrize('radix', [1, 2])
@pytest.mark.parametrize('layout', LAYOUTS[:-1])
def test_which_layouts_are_copied(layout, radix):
    from timm_sk.ops.kernels.strides import readable

    branches = branches_of(make_tensors(PLAIN._replace(layout=layout, radix=radix)), radix)
    copied = [
        ours.data_ptr() != theirs.data_ptr() for ours, theirs in zip(readable(branches)[0], branches, strict=True)
    ]
    assert copied == [LAYOUTS.index(layout) >= LAYOUTS.index('every other column')] * 2


WITHOUT_TRITON = """
import sys
sys.modules['triton'] = None
import torch, timm_sk
torch.cuda.is_available = lambda: True
branches = [torch.ones(2, 3, 4, 5)] * 2
assert timm_sk.ops.fuse(branches).eq(2).all()
for _ in range(3):
    assert not timm_sk.ops.kernels.available()
assert not timm_sk.ops.kernels.load('fuse')
"""


@pytest.mark.deep
def test_missing_triton_is_logged_once():
    done = run_python('-c', WITHOUT_TRITON, TRITON_INTERPRET='0')
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if 'Triton' in line]
    assert len(lines) == 1
    assert 'No Triton kernels on this CUDA device: Triton does not start (ModuleNotFoundError' in lines[0]
