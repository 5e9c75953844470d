"""timm_sk::fuse_bias_act and timm_sk::select_bias_act against the reference in float64."""

import pytest
import torch
from filling import make_input
from kernel_cases import (
    CASES,
    DEVICE,
    Case,
    assert_close,
    branches_of,
    exact,
    launched,
    make_logits,
    make_tensors,
    name_of,
)
from torch import Tensor

from timm_sk.ops import reference

pytestmark = pytest.mark.usefixtures('poisoned')

PLAIN = Case(2, 1, (2, 5, 7, 6), torch.float32, 'contiguous')


@pytest.fixture
def folded():
    from timm_sk.ops.kernels import fuse_select_bias_act as folded

    return folded


def make_vectors(count: int, channels: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [make_input((channels,), seed=seed + m).to(DEVICE, dtype) for m in range(count)]


@pytest.mark.parametrize('case', CASES, ids=name_of)
@torch.no_grad()
def test_values(folded, case):
    raws = branches_of(make_tensors(case), case.radix)
    logits = make_logits(case)
    # as large as the features, so that each activation and its absence differ
    biases = make_vectors(case.count, case.shape[1], torch.float32, seed=30)
    activation, gate = ('relu', 'relu6', '')[case.count % 3], ('softmax', 'sigmoid')[case.count // 3]
    if case.shape[1] > 5 or case.count == 2:
        activation = 'relu'
    with launched(fuse_bias_act=1, select_bias_act=1):
        fused = folded.fuse_bias_act(raws, biases, activation)
        selected = folded.select_bias_act(raws, biases, activation, logits, gate)
    branches = reference.apply_epilogue(exact(raws), exact(biases), activation)
    assert_close([fused], [reference.fuse(branches)])
    assert_close([selected], [reference.select(branches, logits.double(), gate)])
    assert selected.dtype is fused.dtype is case.dtype


@torch.no_grad()
def test_relu6_has_both_ends(folded):
    raws, logits = [8 * tensor for tensor in make_tensors(PLAIN)], make_logits(PLAIN)
    biases = make_vectors(2, 5, torch.float32, seed=30)
    with launched(fuse_bias_act=1, select_bias_act=1):
        fused = folded.fuse_bias_act(raws, biases, 'relu6')
        selected = folded.select_bias_act(raws, biases, 'relu6', logits, 'softmax')
    branches = [
        (raw.double() + shift.double()[:, None, None]).clamp(0, 6) for raw, shift in zip(raws, biases, strict=True)
    ]
    assert {0.0, 6.0} <= set(branches[0].unique().tolist())
    assert_close([fused], [reference.fuse(branches)])
    assert_close([selected], [reference.select(branches, logits.double())])


@torch.no_grad()
def test_nan_stays_nan_behind_a_relu(folded):
    (raw,) = make_tensors(PLAIN._replace(count=1))
    raw[1, 2, 3, 4] = float('nan')
    with launched(fuse_bias_act=1, select_bias_act=1):
        fused = folded.fuse_bias_act([raw], make_vectors(1, 5, torch.float32, seed=1), 'relu')
        logits = torch.zeros(2, 1, 5, device=DEVICE)
        selected = folded.select_bias_act([raw], make_vectors(1, 5, torch.float32, seed=1), 'relu', logits, 'softmax')
    assert fused.isnan().nonzero().tolist() == [[1, 2]]
    assert selected.isnan().nonzero().tolist() == [[1, 2, 3, 4]]


@torch.no_grad()
def test_an_empty_batch(folded):
    raws, biases = [torch.ones(0, 5, 7, 6, device=DEVICE)] * 2, make_vectors(2, 5, torch.float32, seed=1)
    with launched():
        assert folded.fuse_bias_act(raws, biases, 'relu').shape == (0, 5)
        logits = torch.zeros(0, 2, 5, device=DEVICE)
        assert folded.select_bias_act(raws, biases, 'relu', logits, 'softmax').shape == (0, 5, 7, 6)


def test_refuses_what_needs_a_gradient(folded):
    raws, biases = make_tensors(PLAIN), make_vectors(2, 5, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match='have no backward pass'):
        folded.fuse_bias_act(raws, biases, 'relu')
    raws = [raw.detach() for raw in raws]
    with launched(), pytest.raises(ValueError, match='have no backward pass'):
        folded.select_bias_act(raws, biases, 'relu', make_logits(PLAIN), 'softmax')


@pytest.mark.parametrize(
    ('count', 'activation', 'message'),
    [(2, 'silu', "must be '', 'relu' or 'relu6', got 'silu'"), (1, 'relu', 'one bias for each of the 2 .*got 1')],
)
@torch.no_grad()
def test_refuses_before_a_launch(folded, count, activation, message):
    vectors = make_vectors(2, 5, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match=message):
        folded.fuse_bias_act(make_tensors(PLAIN), vectors[:count], activation)


@torch.no_grad()
def test_refuses_vectors_and_logits_of_another_shape(folded):
    raws, biases = make_tensors(PLAIN), make_vectors(2, 4, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match=r'must be \[C\] = \[5\], got \[4\]'):
        folded.fuse_bias_act(raws, biases, 'relu')
    wide = [torch.ones(2, 4, 3, 3, device=DEVICE)]
    with launched(), pytest.raises(ValueError, match=r'for 1 raw outputs, got \[2, 2, 2\]'):
        folded.select_bias_act(wide, biases[:1], 'relu', torch.zeros(2, 2, 2, device=DEVICE), 'softmax')
