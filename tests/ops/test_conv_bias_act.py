"""convolve against separate steps, on whatever it is given, and where oneDNN must not be called."""

import pytest
import torch
import torch.nn.functional as F
from random_weights import make_input
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from timm_sk.ops import conv_bias_act
from timm_sk.ops.conv_bias_act import ACTIVATIONS, convolve, pack

STEPS = {'': lambda x: x, 'relu': F.relu, 'relu6': F.relu6}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
NUMBERS = ((2, 1), (1, 2), (1, 1))  # stride, padding, dilation


def make(dtype: torch.dtype, groups: int, *, nhwc: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    x = 3 * make_input((2, 8, 9, 7)).to(dtype).contiguous(memory_format=layout)
    weight, bias = make_input((12, 8 // groups, 3, 3)).to(dtype), make_input((12,)).to(dtype)
    return x, weight, bias, 4 * make_input((2, 12, 5, 9)).to(dtype).contiguous(memory_format=layout)


def expected(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: str, groups: int) -> Tensor:
    out = F.conv2d(x.double(), weight.double(), bias.double(), *NUMBERS, groups)
    return STEPS[activation](out if shortcut is None else out + shortcut.double())


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE[found.dtype]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('nhwc', [True, False])
@pytest.mark.parametrize('groups', [1, 4])
@torch.no_grad()
def test_values(dtype, nhwc, groups):
    x, weight, bias, shortcut = make(dtype, groups, nhwc=nhwc)
    kept = [tensor.clone() for tensor in (x, weight, bias, shortcut)]
    packed = pack(weight, [2, 8, 20, 20], *(list(pair) for pair in NUMBERS), groups)
    for activation in ACTIVATIONS:
        for added in (None, shortcut):
            wanted = expected(x, weight, bias, added, activation, groups)
            for laid_out in (None, packed):
                found = convolve(x, weight, bias, *NUMBERS, groups, activation, added, laid_out)
                assert found.dtype is dtype
                assert found.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
                assert_close(found, wanted)
    assert all(torch.equal(a, b) for a, b in zip((x, weight, bias, shortcut), kept, strict=True))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this torch has no oneDNN')
@torch.no_grad()
def test_one_pass_where_it_is_faster(monkeypatch):
    steps = []
    conv2d = F.conv2d
    monkeypatch.setattr(conv_bias_act.F, 'conv2d', lambda *given: steps.append(given) or conv2d(*given))

    def takes_steps(groups: int, count: int, *, nhwc: bool, dilation: int = 1) -> bool:
        x, weight, bias, _ = make(torch.float32, groups, nhwc=nhwc)
        numbers = ([2, 1], [dilation, 2], [dilation, dilation])
        wanted = F.conv2d(x[:count].double(), weight.double(), bias.double(), *numbers, groups)
        shortcut = 4 * make_input(tuple(wanted.shape)).contiguous(memory_format=torch.channels_last)
        for added in (None, shortcut):
            steps.clear()
            found = convolve(x[:count], weight, bias, *numbers, groups, 'relu', added)
            assert_close(found, F.relu(wanted if added is None else wanted + added))
        return bool(steps)

    assert not takes_steps(1, 2, nhwc=True)
    assert takes_steps(4, 2, nhwc=False)
    for dilation in (1, 2):  # a single small image
        assert takes_steps(1, 1, nhwc=True, dilation=dilation)
        assert takes_steps(1, 1, nhwc=False, dilation=dilation)


@torch.no_grad()
def test_odd_inputs():
    x, weight, bias, shortcut = make(torch.float32, 1)
    point = x[:, :, :1, :1]  # its layout could be either
    for image in (x[:0], x[:, :, ::2], x.transpose(2, 3), point, x.expand(2, 8, 9, 7)):
        found = convolve(image, weight, bias, *NUMBERS, 1, 'relu')
        wanted = F.relu(F.conv2d(image, weight, bias, *NUMBERS))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    bfloat = [tensor.bfloat16() for tensor in (point, weight, bias)]
    assert convolve(*bfloat, *NUMBERS, 1, 'relu', torch.ones(2, 12, 1, 3).bfloat16()).shape == (2, 12, 1, 3)
    with pytest.raises(RuntimeError, match='to have 8 channels, but got 4'):
        convolve(x[:, :4], weight, bias, *NUMBERS, 1)
    with pytest.raises(RuntimeError, match='must match'):
        convolve(x, weight, bias, *NUMBERS, 1, '', shortcut[..., :5])
    with pytest.raises(RuntimeError, match=r'type'):
        convolve(x, weight.double(), bias, *NUMBERS, 1)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_gradients(activation):
    x, weight, bias, shortcut = make(torch.float64, 4)
    inputs = [tensor.detach().requires_grad_() for tensor in (x[:1], weight, bias, shortcut[:1])]
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, shortcut: convolve(x, weight, bias, *NUMBERS, 4, activation, shortcut), inputs
    )


def test_gradients_where_only_one_input_has_them():
    for index in range(4):
        inputs = list(make(torch.float32, 1))
        inputs[index] = inputs[index].clone().requires_grad_()
        x, weight, bias, shortcut = inputs
        convolve(x, weight, bias, *NUMBERS, 1, 'relu', shortcut).sum().backward()
        assert inputs[index].grad.abs().max() > 0


@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
@torch.no_grad()
def test_others_see_public_operations_only():
    x, weight, bias, shortcut = make(torch.float32, 1)

    def run(image: Tensor) -> Tensor:
        return convolve(image, weight, bias, *NUMBERS, 1, 'relu', shortcut)

    with FlopCounterMode(display=False) as counter:
        run(x)
    assert [*counter.flop_counts['Global']] == [torch.ops.aten.convolution]  # which it sees no other way
    assert 'mkldnn' not in str(torch.jit.trace(run, x).graph)
    with torch.autocast('cpu', torch.bfloat16):
        assert run(x).dtype is torch.bfloat16
    both = torch.vmap(run)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(both[1], run(2 * x), rtol=0, atol=1e-4)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(run(x), both[0], rtol=0, atol=1e-4)
