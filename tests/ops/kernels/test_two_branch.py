"""The two-branch kernel against the reference in float64: in Triton's interpreter, with wider cases on a GPU."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import launched
from random_weights import make_input
from torch import Tensor

from timm_sk.layers.merged_groups import merge_groups
from timm_sk.ops import kernels, reference

triton = pytest.importorskip('triton')
two_branch = pytest.importorskip('timm_sk.ops.kernels.two_branch')
plan = pytest.importorskip('timm_sk.ops.kernels.two_branch_tiling')

# How far a value may be off by the rounding of the result. The interpreter truncates to bfloat16 where a GPU rounds.
ROUNDING = {torch.float32: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
FLOAT32_SUMS = 2e-6  # of the largest value: float32's own rounding in the sums
# In 16 bits matrix units add: they may cut each product off at 2^-23 of the sum that it is added to. Sums in the dtype
# itself would be off by 2^-9 of the largest value or more, 13 times as much as the most products here allow.
CUT_OFF = 2**-23


@dataclass(frozen=True)
class Case:
    """A pair of convolutions: B, C_in, C, groups, H, W, stride, dilations."""

    batch: int
    in_channels: int
    channels: int
    groups: int
    height: int
    width: int
    stride: int = 1
    dilations: tuple[int, int] = (1, 2)


SMALL = [
    Case(2, 32, 32, 8, 9, 7),  # 2 tiles across, a block
    Case(1, 64, 64, 16, 5, 5, dilations=(1, 3)),  # 2 blocks of 8 groups
    Case(1, 64, 64, 4, 7, 6, stride=2),  # 16 channels a group
    Case(1, 64, 64, 2, 4, 9, stride=2, dilations=(1, 3)),  # a block is a group
    Case(2, 48, 24, 2, 5, 5),  # 24 input and 12 output channels a group, so one block
    Case(1, 40, 80, 2, 6, 6, stride=2),  # 20 and 40 channels a block, two products in a tap
    Case(1, 16, 16, 1, 1, 1),  # nothing but borders
    Case(1, 17, 19, 1, 3, 18, dilations=(2, 1)),
    Case(0, 32, 32, 8, 9, 7),
]
WIDE = [
    Case(batch, width, width, groups, size, size, stride, dilations)
    for width, groups in ((128, 32), (256, 32), (512, 32), (1024, 32), (112, 8), (256, 2), (128, 1))
    for size, stride in ((56, 1), (57, 2), (7, 1))
    for batch, dilations in ((1, (1, 2)), (5, (1, 3)))
]


def on_devices(*cases: Case) -> list[Any]:
    """Cases on the CPU, the first four in the default tier, and these and the wide ones on a GPU."""
    on_gpu = [pytest.param('cuda', case, marks=pytest.mark.gpu) for case in (*cases, *WIDE)]
    on_cpu = [pytest.param('cpu', case, marks=() if case in cases[:4] else pytest.mark.deep) for case in cases]
    return on_cpu + on_gpu


class Inputs:
    """Random input, weights and biases of a case, and as packed for the kernel."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32, device: str = 'cpu') -> None:
        share = case.in_channels // case.groups
        shape = (case.channels, share, 3, 3)
        scale = (9 * share) ** -0.5
        self.case = case
        self.x = make_input((case.batch, case.in_channels, case.height, case.width)).to(device, dtype)
        self.weights = [(scale * make_input(shape, seed=m)).to(device, dtype) for m in range(2)]
        self.biases = [make_input((case.channels,), seed=m).to(device, dtype) for m in range(2)]
        self.logits = 2 * make_input((case.batch, 2, case.channels)).to(device)
        blocks = plan.block_count(case.in_channels, case.channels, case.groups)
        merged = [merge_groups(weight, case.groups, blocks) for weight in self.weights]
        self.packed = (plan.pack(merged, blocks), torch.stack(self.biases))
        self.numbers = (case.stride, list(case.dilations))

    def reference(self) -> list[Tensor]:
        """The branches in float64."""
        weights, biases = ([tensor.double() for tensor in tensors] for tensors in (self.weights, self.biases))
        stride, dilations = self.numbers
        return [
            F.conv2d(self.x.double(), weight, bias, stride, dilation, dilation, self.case.groups).relu()
            for weight, bias, dilation in zip(weights, biases, dilations, strict=True)
        ]

    def compute(self, x: Tensor, logits: Tensor | None = None, *, store: bool = False) -> list[Tensor]:
        return two_branch.compute(x, *self.packed, *self.numbers, logits, store)

    def run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Branches, descriptor and selected features: by the kernel, and by the reference."""
        logits, wanted = self.logits.to(x.dtype), self.reference()
        with launched(two_branch=2):
            found = self.compute(x, store=True) + self.compute(x, logits)
        return found, [*wanted, reference.fuse(wanted), reference.select(wanted, logits.double())]

    def framed(self) -> Tensor:
        """The input in channels last, surrounded by NaN, so that reads outside of it are noticed."""
        nhwc = self.x.permute(0, 2, 3, 1).contiguous()
        margin = 4 * self.case.width * self.case.in_channels
        memory = torch.full((nhwc.numel() + 2 * margin,), torch.nan, dtype=nhwc.dtype, device=nhwc.device)
        inside = memory[margin : margin + nhwc.numel()].view(nhwc.shape)
        return inside.copy_(nhwc).permute(0, 3, 1, 2)


def assert_close(found: Tensor, wanted: Tensor, *, sums: float = FLOAT32_SUMS, largest: float | None = None) -> None:
    assert found.shape == wanted.shape
    if largest is None:
        largest = float(wanted.abs().max()) if wanted.numel() else 0
    rounding = ROUNDING[found.dtype] * (2 if found.dtype == torch.bfloat16 and not found.is_cuda else 1)
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=sums * largest)


@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize(('device', 'case'), on_devices(*SMALL))
def test_values(device, case):
    inputs = Inputs(case, device=device)
    x, logits, launches = inputs.framed(), inputs.logits, 3 * min(case.batch, 1)
    with launched(**dict(two_branch=launches) if launches else {}):
        *branches, fused = inputs.compute(x, store=True)
        (again,), (selected,) = inputs.compute(x), inputs.compute(x, logits)
    wanted = inputs.reference()
    for branch, expected in zip(branches, wanted, strict=True):
        assert_close(branch, expected)
    for found in (fused, again):
        assert_close(found, reference.fuse(wanted))
    assert_close(selected, reference.select(wanted, logits.double()))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (*branches, selected))


@pytest.mark.parametrize(('device', 'case'), on_devices(Case(1, 24, 24, 1, 3, 5)))
def test_writes_stay_within_the_results(device, case, monkeypatch):
    inputs, empty, margin, fence = Inputs(case, device=device), torch.empty, 20 * case.width * case.channels, 7.0
    made: list[Tensor] = []

    def fenced(*size: Any, **kwargs: Any) -> Tensor:
        shape = empty(*size, **{**kwargs, 'device': 'meta'})
        made.append(torch.full((shape.numel() + 2 * margin,), fence, dtype=shape.dtype, device=device))
        return made[-1].as_strided(shape.shape, shape.stride(), margin)

    with monkeypatch.context() as patched, launched(two_branch=2):
        patched.setattr(torch, 'empty', fenced)
        inputs.compute(inputs.x, store=True)
        inputs.compute(inputs.x, inputs.logits)
    assert len(made) == 4  # two branches, partial sums, selected features
    for memory in made:
        assert (memory[:margin] == fence).all()
        assert (memory[-margin:] == fence).all()
        assert (memory[margin:-margin] != fence).all()


@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(('device', 'case'), on_devices(Case(1, 48, 48, 8, 5, 9), Case(1, 64, 64, 4, 5, 4, 2, (1, 3))))
def test_half_precision(device, case, dtype):
    inputs = Inputs(case, dtype, device)
    found, wanted = inputs.run(inputs.framed())
    products, largest = 9 * case.in_channels // case.groups, max(float(branch.max()) for branch in wanted[:2])
    for ours, expected in zip(found, wanted, strict=True):
        assert_close(ours, expected, sums=products * CUT_OFF, largest=largest)
        assert ours.dtype is dtype


@pytest.mark.parametrize(('device', 'case'), on_devices(Case(2, 32, 32, 8, 4, 5)))
def test_layouts_of_the_input(device, case):
    inputs = Inputs(case, device=device)
    wide = torch.full((case.batch, case.in_channels, case.height, 2 * case.width), torch.nan, device=device)
    wide[..., ::2] = inputs.x
    layouts = [inputs.x, inputs.framed(), wide[..., ::2], inputs.x.transpose(2, 3).contiguous().transpose(2, 3)]
    with launched(two_branch=len(layouts)):
        found = [inputs.compute(x, store=True) for x in layouts]
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))
    assert_close(found[0][1], inputs.reference()[1])


@pytest.mark.parametrize(('device', 'case'), on_devices(Case(1, 16, 16, 1, 6, 7)))
def test_nan_and_large_logits(device, case):
    inputs = Inputs(case, device=device)
    inputs.x[0, 3, 2, 4] = torch.nan
    inputs.logits[0, :, 1] = torch.tensor([1e4, -1e4])
    found, wanted = inputs.run(inputs.x)
    for ours, expected in zip(found, wanted, strict=True):
        assert torch.equal(ours.isnan(), expected.isnan())
        assert_close(ours.nan_to_num(), expected.nan_to_num())
    assert 0 < found[0].isnan().sum() < found[0].numel()


@pytest.mark.parametrize(('device', 'case'), on_devices(Case(1, 16, 16, 1, 3, 3)))
def test_opcheck(device, case):
    inputs = Inputs(case, device=device)
    checks = ('test_schema', 'test_faketensor', 'test_aot_dispatch_dynamic')
    for logits, store in ((None, True), (None, False), (inputs.logits, False)):
        arguments = (inputs.x, *inputs.packed, *inputs.numbers, logits, store)
        torch.library.opcheck(two_branch.compute, arguments, test_utils=checks)


def select_with(**changes: Any) -> None:
    inputs = Inputs(Case(2, 32, 32, 8, 4, 5))
    weight, bias = inputs.packed
    arguments = dict(x=inputs.x, weight=weight, bias=bias, logits=inputs.logits, stride=1, dilations=[1, 2])
    two_branch.compute(
        store_branches=False, **{**arguments, **{name: change(arguments[name]) for name, change in changes.items()}}
    )


@pytest.mark.parametrize(
    ('changes', 'given'),
    [
        (dict(x=lambda x: x[0]), r'\[32, 4, 5\]'),
        (dict(x=lambda x: x[:, :, :0]), r'\[2, 32, 0, 5\]'),
        (dict(x=lambda x: x.double()), r'torch\.float64'),
        (dict(x=lambda x: x.half()), r'torch\.float16'),
        (dict(x=lambda x: x[:, :16]), r'\[2, 16, 4, 5\]'),
        (dict(weight=lambda w: w[0]), r'\[1, 9, 32, 32\]'),
        (dict(weight=lambda w: w[:, :, :4]), r'\[2, 1, 4, 32, 32\]'),
        (dict(weight=lambda w: w[..., :8]), r'\[2, 1, 9, 32, 8\]'),
        (dict(bias=lambda b: b[0]), r'\[32\]'),
        (dict(logits=lambda t: t[:1]), r'\[1, 2, 32\]'),
        (dict(stride=lambda s: 3), 'stride 3'),
        (dict(dilations=lambda d: [0, 1]), r'dilations \[0, 1\]'),
        (dict(dilations=lambda d: [1, 2, 3]), r'dilations \[1, 2, 3\]'),
    ],
)
def test_wrong_arguments(changes, given):
    with launched(), pytest.raises(ValueError, match=f'The kernel takes.*; got .*{given}'):
        select_with(**changes)


def test_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(kernels, 'INTERPRETED', False)
    with launched(), pytest.raises(ValueError, match=r'takes, on one GPU.* on cpu'):
        select_with()
