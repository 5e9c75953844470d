"""A batch norm that writes into the convolution's output: the same values, and only where it makes no difference."""

import copy
from contextlib import nullcontext

import pytest
import torch
from random_weights import fill_model, make_input
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from timm_sk.layers.conv_sequence import conv_norm


@pytest.fixture
def pair():
    return nn.Conv2d(4, 6, 3, padding=1, bias=False).eval(), fill_model(nn.BatchNorm2d(6)).eval()


def run(conv: nn.Module, norm: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """The result, and whether it is in the memory of the convolution's output."""
    convolved = []
    with pytest.MonkeyPatch.context() as patch:
        native = torch.native_batch_norm
        patch.setattr(
            torch, 'native_batch_norm', lambda *given, **out: convolved.append(given[0]) or native(*given, **out)
        )
        out = conv_norm(x, conv, norm)
    return out, bool(convolved) and convolved[0].data_ptr() == out.data_ptr()


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_in_place(pair, dtype, memory_format, affine):
    conv, norm = (module.to(dtype=dtype, memory_format=memory_format) for module in pair)
    if not affine:
        norm = nn.BatchNorm2d(6, affine=False, dtype=dtype).eval()
    x = make_input((2, 4, 7, 5)).to(dtype).contiguous(memory_format=memory_format)
    out, in_place = run(conv, norm, x)
    assert in_place
    assert torch.equal(out, norm(conv(x)))
    assert out.is_contiguous(memory_format=memory_format)


def _train(conv, norm):
    norm.train()


def _batch_statistics(conv, norm):
    norm.running_mean = norm.running_var = None


def _hooks_on_norm(conv, norm):
    norm.double()
    norm.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    norm.register_forward_hook(lambda module, inputs, out: out.float())


def _hook_on_conv(conv, norm):
    conv.register_forward_hook(lambda module, inputs, out: None)


class Remembering(nn.Conv2d):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def _other_convolution(conv, norm):
    conv.__class__ = Remembering


@pytest.mark.parametrize(
    'change',
    [
        *(_train, _batch_statistics, _hooks_on_norm, _hook_on_conv, _other_convolution),
        lambda *_: torch.enable_grad(),
        lambda *_: torch.autocast('cpu', torch.bfloat16),
        lambda *_: FlopCounterMode(display=False),  # sees every operation
    ],
)
@torch.no_grad()
def test_modules_that_must_be_called(pair, change):
    conv, norm = pair
    x = make_input((2, 4, 5, 5))
    with change(conv, norm) or nullcontext():
        expected = copy.deepcopy(norm)(conv(x))
        out, in_place = run(conv, norm, x)
    assert not in_place
    assert torch.equal(out, expected)


@torch.no_grad()
def test_image_without_batch_dimension(pair):
    conv, norm = pair
    with pytest.raises(ValueError, match='expected 4D input'):
        conv_norm(make_input((4, 6, 6)), conv, norm)  # whose height could be taken for the channels
