"""timm_sk::fuse against the reference in float64: values and gradients."""

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
    make_tensors,
    name_of,
)

from timm_sk.ops import kernels, reference

pytestmark = pytest.mark.usefixtures('poisoned')


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_values_and_gradients(case):
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


def test_long_sum_is_in_float32():
    branches = make_tensors(Case(2, 1, (1, 3, 33, 31), torch.bfloat16, 'contiguous'), offset=4)
    with launched(fuse=1):
        fused = fuse(branches)
    assert_close([fused], [reference.fuse(exact(branches))])


def test_gradient_takes_no_memory():
    (branch,) = make_tensors(PLAIN._replace(count=1))
    with launched(fuse=1):
        (gradient,) = torch.autograd.grad(fuse([branch]).sum(), branch)
    assert gradient.stride() == (5, 1, 0, 0)
    assert gradient.unique().tolist() == [pytest.approx(1 / 42)]


def test_mean_of_no_pixels_is_nan():
    with launched():
        assert fuse([torch.ones(2, 3, 0, 4, device=DEVICE)]).isnan().all()


def test_infinity_and_nan_pass_through():
    branch = make_tensors(PLAIN)[0].detach()
    branch[0, 0, 0, 0], branch[0, 1, 4, 5] = float('inf'), float('nan')
    with launched(fuse=1, fuse_bias_act=1):
        for fused in (fuse([branch]), fuse([branch], 1, make_biases(1, 5), 'relu')):
            assert fused[0, 0] == float('inf')
            assert fused.isnan().nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (lambda a: ([a, a.half()],), r'of one shape and dtype .*torch.float32 on .*torch.float16 on'),
        (lambda a: ([a.double(), a.double()],), r'bfloat16 or float16.*torch\.float64'),
        (lambda a: ([a, a[:, :, :3]],), r'of one shape .* got \[2, 8, 5, 3\] .*\[2, 8, 3, 3\]'),
        (lambda a: ([a[0], a[0]],), r'\[B, C, H, W\] .* got \[8, 5, 3\]'),
        (lambda a: ([a] * 5,), '1 to 4 branches'),
        (lambda a: ([a], 0), 'must divide the 8 channels.*got 0'),
        (lambda a: ([a], 3), 'must divide the 8 channels.*got 3'),
        (lambda a: ([a], 8), 'must divide the 8 channels.*got 8'),
        (lambda a: ([a, a], 1, make_biases(2, 8), 'silu'), "must be '', 'relu' or 'relu6', got 'silu'"),
        (lambda a: ([a, a], 1, make_biases(1, 8), 'relu'), 'one bias for each of the 2 .*got 1'),
        (lambda a: ([a, a], 1, make_biases(2, 4), 'relu'), r'must be \[C\] = \[8\], got \[4\]'),
    ],
)
def test_wrong_arguments(arguments, message):
    with launched(), pytest.raises(ValueError, match=message):
        fuse(*arguments(torch.ones(2, 8, 5, 3, device=DEVICE)))


def test_device_without_kernels(monkeypatch):
    monkeypatch.setattr(kernels, 'INTERPRETED', False)
    with launched(), pytest.raises(ValueError, match=r'on one CUDA device, got .* on cpu'):
        fuse([torch.ones(2, 4, 5, 3)])
