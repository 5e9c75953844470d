"""timm_sk::select against the reference in float64: values, gradients in one pass, second derivatives."""

import pytest
import torch
from kernel_cases import (
    CASES,
    DEVICE,
    PLAIN,
    Case,
    assert_close,
    branches_of,
    exact,
    fuse,
    launched,
    make_biases,
    make_logits,
    make_tensors,
    name_of,
    select,
)

from timm_sk.ops import reference

pytestmark = pytest.mark.usefixtures('poisoned')

GATES = ('softmax', 'sigmoid')
TRAINED = dict(select=1, select_backward=1, gate_backward=1)


def assert_agrees(tensors, logits, gate='softmax', radix=1, grad=None):
    """Compare with the reference; gives the selected features and the gradients."""
    exacts, (exact_logits,) = exact(tensors), exact([logits])
    with launched(**TRAINED):
        selected = select(tensors, logits, gate)
        grad = torch.randn_like(selected) if grad is None else grad
        gradients = torch.autograd.grad(selected, [*tensors, logits], grad)
    expected = reference.select(branches_of(exacts, radix), exact_logits, gate)
    assert_close([selected], [expected])
    assert_close(gradients, torch.autograd.grad(expected, [*exacts, exact_logits], grad.double()))
    return selected, gradients


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_values_and_gradients(case):
    # each case of the narrow grid with one gate, each count of branches with both
    for gate in GATES if case.shape[0] == 2 else GATES[case.count % 2 :][:1]:
        selected, _ = assert_agrees(make_tensors(case), make_logits(case), gate, case.radix)
        assert selected.dtype is case.dtype
        assert selected.is_contiguous(memory_format=torch.channels_last) or 'channels last' not in case.layout


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('logits_dtype', [torch.bfloat16, torch.float32])
def test_logits_of_another_dtype(dtype, logits_dtype):
    case = PLAIN._replace(dtype=dtype, shape=(1, 3, 5, 7))
    _, gradients = assert_agrees(make_tensors(case), make_logits(case, logits_dtype))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype, logits_dtype]


def test_large_logits_neither_overflow_nor_vanish():
    tensors = make_tensors(PLAIN)
    logits = torch.tensor([500.0, 501.0], device=DEVICE)[None, :, None].expand(2, 2, 5)
    far = torch.tensor([-500.0, 500.0], device=DEVICE)[None, :, None].expand(2, 2, 5)
    with launched(select=2):
        selected, gated = select(tensors, logits, 'softmax'), select(tensors, far, 'sigmoid')
    assert_close([selected], [reference.select(exact(tensors), logits.double())])
    assert torch.equal(gated, tensors[1])


@pytest.mark.parametrize('incoming', ['expanded', 'channels last', 'slice'])
def test_layouts_of_the_incoming_gradient(incoming):
    grad = torch.randn(2, 9, 7, 6, device=DEVICE)
    grad = {
        'expanded': grad[:, :5, :1, :1].expand(2, 5, 7, 6),
        'channels last': grad[:, :5].contiguous(memory_format=torch.channels_last),
        'slice': grad[:, 2:7],
    }[incoming]
    assert_agrees(make_tensors(PLAIN), make_logits(PLAIN), grad=grad)


@pytest.mark.parametrize('gate', GATES)
def test_second_derivatives(gate):
    case = Case(2, 1, (1, 3, 5, 3), torch.float32, 'contiguous')
    second = []
    inputs = [*make_tensors(case), make_logits(case)]
    with launched(**TRAINED):  # the kernels' part of the second pass
        for given in (inputs, exact(inputs)):
            *tensors, logits = given
            by = select if given is inputs else reference.select
            first = torch.autograd.grad(by(tensors, logits, gate).sin().sum(), given, create_graph=True)
            second.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), given))
    for ours, expected in zip(*second, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_gradients_are_deterministic():
    case = Case(2, 1, (1, 3, 9, 31), torch.float32, 'channels last')
    tensors, logits = make_tensors(case), make_logits(case)
    grad = torch.randn(case.shape, device=DEVICE)
    with launched(select=2, select_backward=2, gate_backward=2):
        once, again = (
            torch.autograd.grad(select(tensors, logits, 'softmax'), [*tensors, logits], grad) for _ in range(2)
        )
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize('needing', [[0], [1], [2]])
def test_gradients_where_only_one_input_has_them(needing):
    inputs = [tensor.detach() for tensor in (*make_tensors(PLAIN), make_logits(PLAIN))]
    for index in needing:
        inputs[index].requires_grad_()
    exacts = exact(inputs)
    with launched(**TRAINED):
        select(inputs[:2], inputs[2], 'softmax').square().sum().backward()
    reference.select(exacts[:2], exacts[2]).square().sum().backward()
    assert_close([inputs[index].grad for index in needing], [exacts[index].grad for index in needing], torch.bfloat16)


@pytest.mark.parametrize('shape', [(0, 5, 7, 6), (2, 0, 7, 6), (2, 5, 0, 6)])
def test_empty_tensors(shape):
    branches = [torch.ones(shape, device=DEVICE, requires_grad=True) for _ in range(2)]
    logits = torch.zeros(shape[0], 2, shape[1], device=DEVICE, requires_grad=True)
    with launched():
        fused, selected = fuse(branches), select(branches, logits, 'softmax')
        (fused.sum() + selected.sum()).backward()
        with torch.no_grad():
            biases = make_biases(2, shape[1])
            assert fuse(branches, 1, biases, 'relu').shape == fused.shape == shape[:2]
            assert select(branches, logits, 'softmax', biases, 'relu').shape == shape
    assert selected.shape == branches[0].grad.shape == branches[1].grad.shape == shape
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ('logits', 'gate', 'message'),
    [
        (torch.zeros(2, 2, 5), 'relu', "must be 'softmax' or 'sigmoid', got 'relu'"),
        (torch.zeros(2, 3, 5), 'softmax', r'got \[2, 3, 5\]'),
        (torch.zeros(2, 4, 5), 'softmax', r'got \[2, 4, 5\]'),
        (torch.zeros(1, 2, 5), 'softmax', r'got \[1, 2, 5\]'),
        (torch.zeros(2, 10), 'softmax', r'got \[2, 10\]'),
        (torch.zeros(2, 2, 5).double(), 'softmax', 'torch.float64'),
        (torch.zeros(2, 2, 5, device='meta'), 'softmax', 'on one CUDA device, got .* on meta'),
    ],
)
def test_wrong_logits(logits, gate, message):
    with launched(), pytest.raises(ValueError, match=message):
        select(make_tensors(PLAIN), logits if logits.is_meta else logits.to(DEVICE), gate)


def test_wrong_gradients():
    from timm_sk.ops.kernels.select import select_backward

    tensors, logits = make_tensors(PLAIN), make_logits(PLAIN)
    for grad in (tensors[0].half(), tensors[0][:, :4]):
        with launched(), pytest.raises(ValueError, match='of one shape and dtype'):
            select_backward(grad.detach(), tensors, logits, 'softmax')


@pytest.mark.parametrize('launch_of', ['fuse', 'select', 'select_backward', 'gate_backward'])
def test_what_no_program_writes_is_nan(launch_of, monkeypatch):
    from timm_sk.ops.kernels import fuse as fuse_module
    from timm_sk.ops.kernels import launcher
    from timm_sk.ops.kernels import select as select_module

    def one_less(name, kernel, programs, *args, **constants):
        launcher.launch(name, kernel, programs - (name == launch_of), *args, **constants)

    for module in (fuse_module, select_module):
        monkeypatch.setattr(module, 'launch', one_less)
    tensors, logits = make_tensors(PLAIN), make_logits(PLAIN)
    with launched(fuse=1, **TRAINED):
        fused, selected = fuse(tensors), select(tensors, logits, 'softmax')
        gradients = torch.autograd.grad(selected, [*tensors, logits], torch.ones_like(selected))
    assert any(tensor.isnan().any() for tensor in (fused, selected, *gradients))


@pytest.mark.parametrize('case', CASES, ids=name_of)
@torch.no_grad()
def test_fuse_and_select_with_bias_and_activation(case):
    tensors, logits = make_tensors(case), make_logits(case)
    biases = make_biases(case.count, case.shape[1])
    activation, gate = ('relu', 'relu6', '')[case.count % 3], GATES[case.count // 3]
    if case.shape[1] > 5 or case.count == 2:
        activation = 'relu'
    with launched(fuse_bias_act=1, select_bias_act=1):
        fused = fuse(tensors, case.radix, biases, activation)
        selected = select(tensors, logits, gate, biases, activation)
    branches = reference.apply_epilogue(branches_of(exact(tensors), case.radix), exact(biases), activation)
    assert_close([fused, selected], [reference.fuse(branches), reference.select(branches, logits.double(), gate)])
    assert selected.dtype is fused.dtype is case.dtype


@torch.no_grad()
def test_both_ends_of_relu6():
    tensors, logits, biases = [8 * tensor for tensor in make_tensors(PLAIN)], make_logits(PLAIN), make_biases(2, 5)
    with launched(fuse_bias_act=1, select_bias_act=1):
        found = fuse(tensors, 1, biases, 'relu6'), select(tensors, logits, 'softmax', biases, 'relu6')
    sums = [x.double() + bias.double()[:, None, None] for x, bias in zip(tensors, biases, strict=True)]
    branches = [x.clamp(0, 6) for x in sums]
    assert {0.0, 6.0} <= set(branches[0].unique().tolist())
    assert_close(found, [reference.fuse(branches), reference.select(branches, logits.double())])


def test_bias_and_activation_have_no_gradient():
    tensors, logits, biases = make_tensors(PLAIN), make_logits(PLAIN), make_biases(2, 5)
    with pytest.raises(ValueError, match='have no backward pass in the kernels'):
        fuse(tensors, 1, biases, 'relu')
    with pytest.raises(ValueError, match='have no backward pass in the kernels'):
        select([tensor.detach() for tensor in tensors], logits, 'softmax', biases, 'relu')
