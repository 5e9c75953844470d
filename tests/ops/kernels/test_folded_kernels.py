"""timm_sk::fuse_normed and timm_sk::select_normed against the law in float64."""

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
    from timm_sk.ops.kernels import folded

    return folded


def make_vectors(count: int, channels: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [make_input((channels,), seed=seed + m).to(DEVICE, dtype) for m in range(count)]


@pytest.mark.parametrize('case', CASES, ids=name_of)
@torch.no_grad()
def test_values(folded, case):
    raws = branches_of(make_tensors(case), case.radix)
    logits = make_logits(case)
    # negative scales and shifts as large as the features, so that each activation and its absence differ
    scales = make_vectors(case.count, case.shape[1], case.dtype, seed=20) if case.count != 2 else []
    shifts = make_vectors(case.count, case.shape[1], torch.float32, seed=30)
    activation, gate = ('relu', 'relu6', '')[case.count % 3], ('softmax', 'sigmoid')[case.count // 3]
    if case.shape[1] > 5 or case.count == 2:
        activation = 'relu'
    with launched(fuse_normed=1, select_normed=1):
        fused = folded.fuse_normed(raws, scales, shifts, activation)
        selected = folded.select_normed(raws, scales, shifts, logits, gate, activation)
    given = exact(raws), exact(scales), exact(shifts)
    assert_close([fused], [reference.fuse_normed(*given, activation)])
    assert_close([selected], [reference.select_normed(*given, logits.double(), gate, activation)])
    assert selected.dtype is fused.dtype is case.dtype


@torch.no_grad()
def test_relu6_has_both_ends(folded):
    raws, logits = [8 * tensor for tensor in make_tensors(PLAIN)], make_logits(PLAIN)
    shifts = make_vectors(2, 5, torch.float32, seed=30)
    with launched(fuse_normed=1, select_normed=1):
        fused = folded.fuse_normed(raws, [], shifts, 'relu6')
        selected = folded.select_normed(raws, [], shifts, logits, 'softmax', 'relu6')
    branches = [
        (raw.double() + shift.double()[:, None, None]).clamp(0, 6) for raw, shift in zip(raws, shifts, strict=True)
    ]
    assert {0.0, 6.0} <= set(branches[0].unique().tolist())
    assert_close([fused], [reference.fuse(branches)])
    assert_close([selected], [reference.select(branches, logits.double())])


@torch.no_grad()
def test_nan_stays_nan_behind_a_relu(folded):
    (raw,) = make_tensors(PLAIN._replace(count=1))
    raw[1, 2, 3, 4] = float('nan')
    with launched(fuse_normed=1, select_normed=1):
        fused = folded.fuse_normed([raw], [], make_vectors(1, 5, torch.float32, seed=1), 'relu')
        selected = folded.select_normed(
            [raw], [], make_vectors(1, 5, torch.float32, seed=1), torch.zeros(2, 1, 5, device=DEVICE), 'softmax', 'relu'
        )
    assert fused.isnan().nonzero().tolist() == [[1, 2]]
    assert selected.isnan().nonzero().tolist() == [[1, 2, 3, 4]]


@torch.no_grad()
def test_an_empty_batch(folded):
    raws, shifts = [torch.ones(0, 5, 7, 6, device=DEVICE)] * 2, make_vectors(2, 5, torch.float32, seed=1)
    with launched():
        assert folded.fuse_normed(raws, [], shifts, 'relu').shape == (0, 5)
        logits = torch.zeros(0, 2, 5, device=DEVICE)
        assert folded.select_normed(raws, [], shifts, logits, 'softmax', 'relu').shape == (0, 5, 7, 6)


def test_refuses_what_needs_a_gradient(folded):
    raws, shifts = make_tensors(PLAIN), make_vectors(2, 5, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match='have no backward pass'):
        folded.fuse_normed(raws, [], shifts, 'relu')
    raws = [raw.detach() for raw in raws]
    with launched(), pytest.raises(ValueError, match='have no backward pass'):
        folded.select_normed(raws, [], shifts, make_logits(PLAIN), 'softmax', 'relu')


@pytest.mark.parametrize(
    ('scales', 'shifts', 'activation', 'message'),
    [
        (0, 2, 'silu', "must be '', 'relu' or 'relu6', got 'silu'"),
        (0, 1, 'relu', 'got 1 shifts and 0 scales'),
        (1, 2, 'relu', 'got 2 shifts and 1 scales'),
    ],
)
@torch.no_grad()
def test_refuses_before_a_launch(folded, scales, shifts, activation, message):
    vectors = make_vectors(2, 5, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match=message):
        folded.fuse_normed(make_tensors(PLAIN), vectors[:scales], vectors[:shifts], activation)


@torch.no_grad()
def test_refuses_vectors_and_logits_of_another_shape(folded):
    raws, shifts = make_tensors(PLAIN), make_vectors(2, 4, torch.float32, seed=1)
    with launched(), pytest.raises(ValueError, match=r'must be \[C\] = \[5\], got \[4\]'):
        folded.fuse_normed(raws, [], shifts, 'relu')
    wide = [torch.ones(2, 4, 3, 3, device=DEVICE)]
    with launched(), pytest.raises(ValueError, match=r'for 1 raw outputs, got \[2, 2, 2\]'):
        folded.select_normed(wide, [], shifts[:1], torch.zeros(2, 2, 2, device=DEVICE), 'softmax', 'relu')
