"""Captured forward passes, with recordings that compute on the CPU in place of CUDA graphs."""

import contextlib
import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves
from variants import filled, images

import timm_sk
from timm_sk.inference.cuda_graph import Recording

SMALL = dict(input_size=(3, 32, 32), batch_size=2, merge_groups=False)


class Captures:
    """Records as a CUDA graph does: a replay overwrites the output, from the present values of the input.

    Before and after each call both are filled with NaN, as if another thread had replayed in between.
    """

    def __init__(self):
        self.replays = 0
        self.input = None
        self.output = None

    def __call__(self, run, x):
        assert not torch.is_grad_enabled()
        self.input, self.output = x, run(x)

        def replay():
            self.replays += 1
            for old, new in zip(tree_leaves(self.output), tree_leaves(run(x)), strict=True):
                old.copy_(new)

        return Recording(input=x, output=self.output, replay=replay, lock=self.lock)

    @contextlib.contextmanager
    def lock(self):
        self.spoil()
        yield
        self.spoil()

    def spoil(self):
        for tensor in (self.input, *tree_leaves(self.output)):
            tensor.fill_(torch.nan)


@pytest.fixture
def captures(monkeypatch):
    found = Captures()
    monkeypatch.setattr('timm_sk.inference.cuda_graph.record', found)
    return found


def captured(model, **kwargs):
    deployed = timm_sk.deploy(model, **SMALL, compile=False, **kwargs)
    deployed.capture_forward()
    return deployed


@pytest.mark.parametrize('channels_last', [True, False])
def test_only_one_shape_is_replayed(captures, channels_last):
    model = filled('sknet_atto')
    deployed = captured(model, channels_last=channels_last)
    plain = timm_sk.deploy(model, **SMALL, compile=False, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert captures.input.shape == (2, 3, 32, 32)
    assert captures.input.is_contiguous(memory_format=layout)
    first, second = images(size=32), images(size=32).flip(0, 3)
    for x in (first, second, first.contiguous(memory_format=torch.channels_last), first.double(), second.bfloat16()):
        assert torch.equal(deployed(x), plain(x.float()))
    assert captures.replays == 5
    for x in (images(3, size=32), images(size=40), images(1, size=32)):
        assert torch.equal(deployed(x), plain(x))
    assert captures.replays == 5


@pytest.mark.usefixtures('captures')
def test_outputs_are_not_overwritten():
    deployed = captured(filled('sknet_atto'))
    x = images(size=32)
    first = deployed(x)
    kept = first.clone()
    deployed(x.flip(3))
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(deployed(x), kept)
    with torch.inference_mode():
        assert torch.equal(deployed(images(size=32)), kept)
    assert torch.equal(deployed(x.requires_grad_()), kept)
    assert not deployed(x).requires_grad


def test_list_of_features(captures):
    deployed = captured(filled('sknet_atto', features_only=True))
    x = images(size=32)
    found, kept = deployed(x), [features.clone() for features in deployed(x)]
    assert isinstance(found, list)
    deployed(x.flip(3))
    assert all(torch.equal(*pair) for pair in zip(found, kept, strict=True))
    assert captures.replays == 3


def test_copies_are_not_captured(captures):
    deployed = captured(filled('sknet_atto'))
    x = images(size=32)
    assert torch.equal(copy.deepcopy(deployed)(x), deployed(x))
    assert captures.replays == 1


def test_compiled_forward_is_captured(captures):
    deployed = timm_sk.deploy(filled('sknet_atto'), **SMALL, compile=False)
    seen = []
    deployed._compiled = lambda x: seen.append(x.shape) or deployed.model(x)  # in place of a minute's compilation
    deployed.capture_forward()
    assert seen == [(2, 3, 32, 32)]
    deployed(images(size=32))
    assert (captures.replays, len(seen)) == (1, 2)
    deployed(images(3, size=32))
    assert len(seen) == 2


def test_capture_fails(monkeypatch):
    deployed = timm_sk.deploy(filled('sknet_atto'), **SMALL, compile=False)

    def refuse(run, x):
        raise RuntimeError('operation not permitted when stream is capturing')

    monkeypatch.setattr('timm_sk.inference.cuda_graph.record', refuse)
    with pytest.raises(ValueError, match=r'cannot be captured .*\(operation not permitted.*pass cuda_graph=False'):
        deployed.capture_forward()
    assert deployed(images(size=32)).shape == (2, 10)


@pytest.mark.parametrize('function', ['torch.compiler.is_compiling', 'torch.jit.is_tracing'])
def test_graph_is_not_used_when_traced_or_compiled(captures, monkeypatch, function):
    deployed = captured(filled('sknet_atto'))
    monkeypatch.setattr(function, lambda: True)
    deployed(images(size=32))
    assert captures.replays == 0
