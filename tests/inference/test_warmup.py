"""Warm-up calls of models, which change nothing."""

import pytest
import timm
import torch
from variants import filled

from timm_sk import factory
from timm_sk.inference.warmup import CALLS, cudnn_benchmark, warm_up


@pytest.fixture
def warmed(monkeypatch):
    """The inputs that models are warmed up on."""
    inputs = []
    monkeypatch.setattr(factory, 'warm_up', lambda model, x: inputs.append(x) or warm_up(model, x))
    return inputs


def test_cudnn_benchmark_is_restored():
    for before in (False, True):
        torch.backends.cudnn.benchmark = before
        with cudnn_benchmark():
            assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark is before
    torch.backends.cudnn.benchmark = False
    with pytest.raises(ZeroDivisionError), cudnn_benchmark():
        _ = 1 / 0
    assert not torch.backends.cudnn.benchmark


def test_warm_up_without_gradients_or_changes():
    model, seen = filled('sknet_atto'), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.register_forward_hook(
        lambda module, inputs, output: seen.append((torch.backends.cudnn.benchmark, output.requires_grad))
    )
    warm_up(model, torch.zeros(1, 3, 32, 32))
    assert seen == [(True, False)] * CALLS
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('kwargs', [{}, dict(in_chans=1), dict(features_only=True), dict(num_classes=0)])
@pytest.mark.parametrize('memory_format', [torch.channels_last, torch.contiguous_format])
def test_our_models_are_warmed_up(warmed, kwargs, memory_format):
    model = timm.create_model('sknet_atto', **kwargs).to(torch.bfloat16, memory_format=memory_format).eval()
    factory._warm_up_ours(model, memory_format)
    (x,) = warmed
    assert (list(x.shape), x.dtype) == ([1, kwargs.get('in_chans', 3), 32, 32], torch.bfloat16)
    assert x.is_contiguous(memory_format=memory_format)


def test_other_models_and_cpu_are_not_warmed_up(warmed):
    factory._warm_up_ours(timm.create_model('vit_tiny_patch16_224', img_size=32).eval(), torch.contiguous_format)
    factory._warm_up_ours(torch.nn.Conv2d(3, 4, 3), torch.contiguous_format)
    factory.ready_model('sknet_atto', device='cpu')
    assert not warmed
