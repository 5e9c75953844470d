"""On a CUDA device: compiled units, a second device, and tensors whose offsets need 64 bits."""

import copy

import pytest
import torch
from kernel_cases import Case, assert_close, exact, fuse, launched, make_logits, make_tensors, select
from random_weights import fill_model, make_input

import timm_sk
from timm_sk.ops import reference

pytestmark = pytest.mark.gpu

PLAIN = Case(2, 1, (4, 64, 28, 28), torch.float32, 'channels last')


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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_second_device():
    branches = [tensor.detach().to('cuda:1').requires_grad_() for tensor in make_tensors(PLAIN)]
    logits = make_logits(PLAIN).detach().to('cuda:1').requires_grad_()
    found = [fuse(branches), select(branches, logits, 'softmax')]
    gradients = torch.autograd.grad(found[1].square().sum(), [*branches, logits])
    given = exact([*branches, logits])
    wanted = [reference.fuse(given[:2]), reference.select(given[:2], given[2])]
    assert_close(found, wanted)
    assert_close(gradients, torch.autograd.grad(wanted[1].square().sum(), given), torch.float16)
    with pytest.raises(ValueError, match=r'on one CUDA device, got .* on cuda:1.* on cuda:0'):
        select(branches, logits.to('cuda:0'), 'softmax')


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
