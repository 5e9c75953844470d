"""fuse and select against the paper's formulas written with stack; wrong arguments."""

from collections.abc import Callable

import pytest
import torch
from random_weights import make_input
from torch import Tensor

from timm_sk import ops


def make_branches(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [make_input((3, 5, 7, 6), seed=m).to(dtype).requires_grad_() for m in range(count)]


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_fuse_is_the_mean_over_space_of_the_sum(count):
    branches = make_branches(count)
    torch.testing.assert_close(ops.fuse(branches), torch.stack(branches).sum(0).mean((2, 3)), rtol=0, atol=1e-14)


@pytest.mark.all_cases
@pytest.mark.parametrize('gate', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_select_is_the_weighted_sum(count, gate):
    branches, logits = make_branches(count), 3 * make_input((3, count, 5)).double()
    weights = (logits.softmax(1) if gate == 'softmax' else 1 / (1 + (-logits).exp()))[..., None, None]
    expected = (torch.stack(branches, 1) * weights).sum(1)
    torch.testing.assert_close(ops.select(branches, logits, gate), expected, rtol=0, atol=1e-14)


def test_unknown_gate():
    with pytest.raises(ValueError, match=r"must be 'softmax' or 'sigmoid', got 'relu'"):
        ops.select(make_branches(2), torch.zeros(3, 2, 5), 'relu')


def gradient_cases(count: int, gate: str) -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Fuse and select as functions of tensors, and their arguments."""
    branches = [branch.detach()[:, :2, :3, :2].requires_grad_() for branch in make_branches(count)]
    logits = make_input((3, count, 2)).double().requires_grad_()
    return [
        (lambda *args: ops.fuse(list(args)), (*branches,)),
        (lambda *args: ops.select(list(args[:-1]), args[-1], gate), (*branches, logits)),
    ]


@pytest.mark.all_cases
@pytest.mark.parametrize('gate', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('count', [1, 2, 3])
def test_gradients(count, gate):
    """Of both orders by differences, backward, forward and batched."""
    for function, inputs in gradient_cases(count, gate):
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_select_keeps_dtype_and_channels_last(dtype):
    branches = [branch.to(memory_format=torch.channels_last) for branch in make_branches(2, dtype)]
    selected = ops.select(branches, make_input((3, 2, 5)))
    assert selected.dtype is dtype
    assert selected.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('op', [ops.fuse, lambda branches: ops.select(branches, torch.zeros(3, len(branches), 5))])
@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        ([], 'at least one branch, got none'),
        ([(3, 5, 7)], r'\[B, C, H, W\], got 3 dimensions'),
        ([(3, 5, 7, 6), (3, 5, 7, 6), (3, 5, 6, 7)], r'got \[3, 5, 6, 7\] for branch 2 and \[3, 5, 7, 6\]'),
        ([(3, 5, 7, 6), (1, 5, 7, 6)], r'got \[1, 5, 7, 6\] for branch 1'),
    ],
)
def test_wrong_branches(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        op([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize('op', [ops.fuse, lambda branches: ops.select(branches, torch.zeros(3, 2, 5))])
def test_stacked_branches(op):
    with pytest.raises(ValueError, match=r'must be a list of M tensors \[B, C, H, W\], got one tensor'):
        op(torch.zeros(3, 2, 5, 7, 6))


@pytest.mark.parametrize('shape', [(3, 2, 4), (2, 3, 5), (3, 10), (3, 2, 5, 1, 1), (3, 1, 5)])
def test_wrong_logits(shape):
    with pytest.raises(ValueError, match=r'\[B, M, C\] = \[3, 2, 5\] for these branches, got'):
        ops.select([torch.zeros(3, 5, 7, 6)] * 2, torch.zeros(shape))


def test_epilogue_keeps_the_dtype_of_the_convolutions_output():
    """As autocast leaves it, whose weights and biases stay in float32."""
    convolved, bias = torch.randn(1, 4, 3, 3).bfloat16(), torch.randn(4)
    (branch,) = ops.reference.apply_epilogue([convolved], [bias], 'relu')
    assert branch.dtype is torch.bfloat16
    torch.testing.assert_close(branch, (convolved + bias.bfloat16()[:, None, None]).relu())
