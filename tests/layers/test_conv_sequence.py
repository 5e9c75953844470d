"""A batch norm that writes into the convolution's output: the same numbers, and only where nobody can tell."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_sk.layers.conv_sequence import conv_norm


@pytest.fixture
def pair():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    return nn.Conv2d(4, 6, 3, padding=1, bias=False).eval(), norm.eval()


def run(conv, norm, x):
    """The result, and whether it took the convolution's memory."""
    convolved = []
    with pytest.MonkeyPatch.context() as patch:
        native = torch.native_batch_norm
        patch.setattr(
            torch, 'native_batch_norm', lambda *given, **out: convolved.append(given[0]) or native(*given, **out)
        )
        out = conv_norm(x, conv, norm)
    return out, bool(convolved) and convolved[0].data_ptr() == out.data_ptr()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_same_numbers_in_the_convolutions_memory(pair, dtype, memory_format):
    conv, norm = (module.to(dtype=dtype, memory_format=memory_format) for module in pair)
    x = torch.randn(2, 4, 7, 5, dtype=dtype).contiguous(memory_format=memory_format)
    out, written = run(conv, norm, x)
    assert written
    assert torch.equal(out, norm(conv(x)))
    assert out.is_contiguous(memory_format=memory_format)


@torch.no_grad()
def test_norm_without_affine_parameters(pair):
    conv, _ = pair
    norm = nn.BatchNorm2d(6, affine=False).eval()
    x = torch.randn(2, 4, 5, 5)
    out, written = run(conv, norm, x)
    assert written
    assert torch.equal(out, norm(conv(x)))


def _train(conv, norm):
    norm.train()


def _own_statistics(conv, norm):
    norm.running_mean = norm.running_var = None


def _wrapped(conv, norm):
    norm.double()
    norm.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    norm.register_forward_hook(lambda module, inputs, out: out.float())


def _hook_on_conv(conv, norm):
    conv.register_forward_hook(lambda module, inputs, out: None)


@pytest.mark.parametrize('change', [_train, _own_statistics, _wrapped, _hook_on_conv])
@torch.no_grad()
def test_the_norm_runs_as_a_module_where_it_is_another(pair, change):
    conv, norm = pair
    change(conv, norm)
    x = torch.randn(2, 4, 5, 5)
    expected = copy.deepcopy(norm)(conv(x))
    out, written = run(conv, norm, x)
    assert not written
    assert torch.equal(out, expected)


def test_gradients_keep_the_convolutions_output(pair):
    out, written = run(*pair, torch.randn(2, 4, 5, 5))
    assert not written
    assert out.requires_grad


@torch.no_grad()
def test_a_hook_that_keeps_the_convolutions_output_sees_it_unchanged(pair):
    conv, norm = pair
    kept = []
    conv.register_forward_hook(lambda module, inputs, out: kept.append(out))
    x = torch.randn(2, 4, 5, 5)
    conv_norm(x, conv, norm)
    assert torch.equal(kept[0], conv(x))


@torch.no_grad()
def test_other_convolutions_may_keep_what_they_give(pair):
    class Remembering(nn.Conv2d):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    _, norm = pair
    conv = Remembering(4, 6, 3)
    _, written = run(conv, norm, torch.randn(2, 4, 5, 5))
    assert not written


@torch.no_grad()
def test_a_picture_that_is_no_batch_is_refused_as_by_the_norm(pair):
    conv, norm = pair
    with pytest.raises(ValueError, match='expected 4D input'):
        conv_norm(torch.randn(4, 6, 6), conv, norm)  # whose height could be taken for the channels


@torch.no_grad()
def test_autocast_leaves_the_mixed_norm_alone(pair):
    x = torch.randn(2, 4, 5, 5)
    conv, norm = pair
    with torch.autocast('cpu', torch.bfloat16):
        out, written = run(conv, norm, x)
        assert not written
        assert torch.equal(out, norm(conv(x)))


@torch.no_grad()
def test_a_mode_that_keeps_the_convolutions_output_sees_it_unchanged(pair):
    class Keeping(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.convolution.default:
                self.kept = out
            return out

    conv, norm = pair
    x = torch.randn(2, 4, 5, 5)
    with Keeping() as mode:
        conv_norm(x, conv, norm)
    assert torch.equal(mode.kept, conv(x))
