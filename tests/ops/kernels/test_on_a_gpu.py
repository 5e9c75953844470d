"""On a CUDA device: graphs, streams, several devices, and tensors whose offsets need 64 bits."""

import copy

import pytest
import torch
from kernel_cases import Case, assert_close, exact, fuse, launched, make_logits, make_tensors, select
from random_weights import fill_model, make_input
from torch import Tensor, nn

import timm_sk
from timm_sk.ops import reference

pytestmark = pytest.mark.gpu

PLAIN = Case(2, 1, (4, 64, 28, 28), torch.float32, 'channels last')


def both(branches: list[Tensor], logits: Tensor) -> list[Tensor]:
    return [fuse(branches), select(branches, logits, 'softmax')]


def expected(branches: list[Tensor], logits: Tensor) -> list[Tensor]:
    return [reference.fuse(branches), reference.select(branches, logits)]


@torch.no_grad()
def test_cuda_graphs():
    branches, logits = [tensor.detach() for tensor in make_tensors(PLAIN)], make_logits(PLAIN).detach()
    both(branches, logits)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both(branches, logits)
    for branch in branches:
        branch.mul_(-2)
    logits.add_(make_input(logits.shape).cuda())
    graph.replay()
    assert_close(found, expected(exact(branches), logits.double()))


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead', 'max-autotune'])
def test_compiled_units(mode):
    unit = fill_model(timm_sk.SelectiveKernel(64, split_input=False)).cuda().train()
    twin = copy.deepcopy(unit).double()
    compiled = torch.compile(unit, fullgraph=True, mode=mode)
    for seed in range(3):
        x = make_input((4, 64, 28, 28), seed=seed).cuda().requires_grad_()
        output = compiled(x)
        output.sin().sum().backward()
        (exact_x,) = exact([x])
        expected = twin(exact_x)
        expected.sin().sum().backward()
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-2)  # convolutions in TF32
        assert (x.grad.double() - exact_x.grad).norm() <= 1e-2 * exact_x.grad.norm()


@torch.no_grad()
def test_two_streams():
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [(make_tensors(PLAIN, offset=offset), make_logits(PLAIN)) for offset in (0.0, 3.0)]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]
    for _ in range(20):
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[index] = both(*given[index])
    torch.cuda.synchronize()
    for index, (branches, logits) in enumerate(given):
        assert_close(found[index], expected(exact(branches), logits.double()))


def test_no_synchronisation():
    branches, logits = make_tensors(PLAIN), make_logits(PLAIN)

    def step() -> None:
        fused, selected = both(branches, logits)
        torch.autograd.grad(fused.sum() + selected.sum(), [*branches, logits])

    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        with launched(fuse=1, select=1, select_backward=1, gate_backward=1):
            step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_second_device():
    branches = [tensor.detach().to('cuda:1').requires_grad_() for tensor in make_tensors(PLAIN)]
    logits = make_logits(PLAIN).detach().to('cuda:1').requires_grad_()
    found = both(branches, logits)
    gradients = torch.autograd.grad(found[1].square().sum(), [*branches, logits])
    given = exact([*branches, logits])
    wanted = expected(given[:2], given[2])
    assert_close(found, wanted)
    assert_close(gradients, torch.autograd.grad(wanted[1].square().sum(), given), torch.float16)
    with pytest.raises(ValueError, match='must be on one device, got cuda:0 and cuda:1'):
        both(branches, logits.to('cuda:0'))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_data_parallel():
    unit = fill_model(timm_sk.SelectiveKernel(16)).cuda().eval()
    x = make_input((4, 16, 9, 7)).cuda()
    with torch.no_grad(), launched(fuse=2, select=2):
        output = nn.DataParallel(unit)(x)
    torch.testing.assert_close(output.double(), unit.double()(x.double()).detach(), rtol=0, atol=2e-2)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_offsets_of_64_bits(memory_format):
    step = 2**31
    strides = (step, 9, 3, 1) if memory_format == torch.contiguous_format else (step, 1, 15, 5)
    storage = torch.empty(step + 64, dtype=torch.float16, device='cuda')
    values = make_input((2, 5, 3, 3)).half().cuda()
    branch = storage.as_strided((2, 5, 3, 3), strides).copy_(values)
    logits = make_input((2, 1, 5)).cuda()
    with launched(fuse=1, select=1):
        found = fuse([branch]), select([branch], logits, 'sigmoid')
    assert_close(
        found, [reference.fuse([values.double()]), reference.select([values.double()], logits.double(), 'sigmoid')]
    )
