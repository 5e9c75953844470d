"""timm_sk::fuse against the law in float64: values and gradients."""

import pytest
import torch
from kernel_cases import CASES, DEVICE, Case, assert_close, branches_of, exact, launched, make_tensors, name_of

from timm_sk.ops import kernels, reference

pytestmark = pytest.mark.usefixtures('poisoned')


@pytest.fixture
def fuse():
    from timm_sk.ops.kernels.fuse import fuse

    return fuse


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_values_and_gradients(fuse, case):
    tensors = make_tensors(case)
    exacts = exact(tensors)
    with launched(fuse=1):
        fused = fuse(tensors, case.radix)
    expected = reference.fuse(branches_of(exacts, case.radix))
    grad = torch.randn_like(fused)
    assert fused.dtype is case.dtype
    assert_close([fused], [expected])
    gradients = torch.autograd.grad(fused, tensors, grad)
    assert_close(gradients, torch.autograd.grad(expected, exacts, grad.double()))


def test_a_long_sum_is_in_float32(fuse):
    case = Case(2, 1, (1, 3, 33, 31), torch.bfloat16, 'contiguous')
    branches = make_tensors(case, offset=4)
    with launched(fuse=1):
        fused = fuse(branches, 1)
    assert_close([fused], [reference.fuse(exact(branches))])


def test_the_gradient_takes_no_memory(fuse):
    (branch,) = make_tensors(Case(1, 1, (2, 5, 7, 6), torch.float32, 'contiguous'))
    with launched(fuse=1):
        (gradient,) = torch.autograd.grad(fuse([branch], 1).sum(), branch)
    assert gradient.stride() == (5, 1, 0, 0)
    assert gradient.unique().tolist() == [pytest.approx(1 / 42)]


@pytest.mark.parametrize('shape', [(0, 5, 7, 6), (2, 0, 7, 6)])
def test_nothing_is_fused_without_a_launch(fuse, shape):
    branches = [torch.ones(shape, device=DEVICE, requires_grad=True) for _ in range(2)]
    with launched():
        fused = fuse(branches, 1)
        fused.sum().backward()
    assert fused.shape == shape[:2]
    assert branches[1].grad.shape == shape


def test_the_mean_of_no_pixels_is_nan_as_in_the_law(fuse):
    with launched():
        assert fuse([torch.ones(2, 3, 0, 4, device=DEVICE)], 1).isnan().all()


def test_infinities_and_nan_pass_through(fuse):
    (branch,) = (tensor.detach() for tensor in make_tensors(Case(1, 1, (1, 3, 5, 7), torch.float32, 'contiguous')))
    branch[0, 0, 0, 0], branch[0, 1, 4, 6] = float('inf'), float('nan')
    with launched(fuse=1):
        fused = fuse([branch], 1)
    assert fused[0, 0] == float('inf')
    assert fused[0, 1].isnan()
    assert fused[0, 2].isfinite()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a, b: [a, b.half()], 'must have one dtype, got torch.float16 and torch.float32'),
        (lambda a, b: [a.double(), b.double()], 'float32, bfloat16 or float16, got torch.float64'),
        (lambda a, b: [a, b[:, :, :3]], r'must have one shape, got \[2, 4, 3, 3\] and \[2, 4, 5, 3\]'),
        (lambda a, b: [a[0], b[0]], 'got 3 dimensions'),
        (lambda a, b: [a] * 5, '1 to 4 branches, got 5'),
    ],
)
def test_refuses_before_a_launch(fuse, change, message):
    with launched(), pytest.raises(ValueError, match=message):
        fuse(change(torch.ones(2, 4, 5, 3, device=DEVICE), torch.ones(2, 4, 5, 3, device=DEVICE)), 1)


def test_refuses_a_radix_that_does_not_divide(fuse):
    for radix in (0, 3, 8):
        with launched(), pytest.raises(ValueError, match=f'must divide the 8 channels.*got {radix}'):
            fuse([torch.ones(2, 8, 5, 3, device=DEVICE)], radix)


def test_refuses_a_device_without_kernels(fuse, monkeypatch):
    monkeypatch.setattr(kernels, 'INTERPRETED', False)
    with launched(), pytest.raises(ValueError, match='run on CUDA devices, got a tensor on cpu'):
        fuse([torch.ones(2, 4, 5, 3)], 1)


def test_what_no_program_writes_is_nan(fuse, monkeypatch):
    from timm_sk.ops.kernels import fuse as module
    from timm_sk.ops.kernels.launcher import launch

    monkeypatch.setattr(
        module, 'launch', lambda name, kernel, programs, *rest, **kw: launch(name, kernel, programs - 1, *rest, **kw)
    )
    (branch,) = make_tensors(Case(1, 1, (2, 5, 7, 6), torch.float32, 'contiguous'))
    with launched(fuse=1):
        assert fuse([branch], 1).isnan().any()
