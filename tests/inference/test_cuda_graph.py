"""What a captured forward pass does around the graph, with a recording that computes on the CPU in its place."""

import contextlib
import copy

import pytest
import torch
from variants import filled, images

import timm_sk
from timm_sk.inference.cuda_graph import Recording

SMALL = dict(input_size=(3, 32, 32), batch_size=2, merge_groups=False)


class Captures:
    """Records as a CUDA graph would: replaying writes over what was made, from what lies in the input now.

    Before and after each turn somebody else's turn leaves other values in both.
    """

    def __init__(self):
        self.replays = 0
        self.given = None
        self.made = None

    def __call__(self, run, x):
        assert not torch.is_grad_enabled()
        self.given, self.made = x, run(x)

        def replay():
            self.replays += 1
            for old, new in zip(tensors(self.made), tensors(run(x)), strict=True):
                old.copy_(new)

        return Recording(given=x, made=self.made, replay=replay, turn=self.turn)

    @contextlib.contextmanager
    def turn(self):
        self.spoil()
        yield
        self.spoil()

    def spoil(self):
        for tensor in (self.given, *tensors(self.made)):
            tensor.fill_(torch.nan)


def tensors(made):
    return [made] if isinstance(made, torch.Tensor) else made


def captured(model, **kwargs):
    captures = Captures()
    deployed = timm_sk.deploy(model, **{**SMALL, 'compile': False, **kwargs})
    deployed.capture_forward(capture=captures)
    return deployed, captures


@pytest.mark.parametrize('channels_last', [True, False])
def test_one_shape_is_replayed_and_others_are_not(channels_last):
    model = filled('sknet_atto')
    deployed, captures = captured(model, channels_last=channels_last)
    plain = timm_sk.deploy(model, **SMALL, compile=False, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert captures.given.shape == (2, 3, 32, 32)
    assert captures.given.is_contiguous(memory_format=layout)
    first, second = images(size=32), images(size=32).flip(0, 3)
    for x in (first, second, first.contiguous(memory_format=torch.channels_last), first.double(), second.bfloat16()):
        assert torch.equal(deployed(x), plain(x.float()))
    assert captures.replays == 5
    for x in (images(3, size=32), images(size=40), images(1, size=32)):
        assert torch.equal(deployed(x), plain(x))
    assert captures.replays == 5


def test_outputs_are_the_callers():
    deployed, _ = captured(filled('sknet_atto'))
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


def test_lists_of_features_keep_their_form():
    deployed, captures = captured(filled('sknet_atto', features_only=True))
    x = images(size=32)
    found, kept = deployed(x), [features.clone() for features in deployed(x)]
    assert isinstance(found, list)
    deployed(x.flip(3))
    assert all(torch.equal(*pair) for pair in zip(found, kept, strict=True))
    assert captures.replays == 3


def test_copies_are_not_captured():
    deployed, captures = captured(filled('sknet_atto'))
    x = images(size=32)
    assert torch.equal(copy.deepcopy(deployed)(x), deployed(x))
    assert captures.replays == 1


def test_what_is_compiled_is_what_is_captured():
    deployed, _ = captured(filled('sknet_atto'))
    seen = []
    deployed._compiled = lambda x: seen.append(x.shape) or deployed.model(x)  # in place of a minute's compilation
    captures = Captures()
    deployed.capture_forward(capture=captures)
    assert seen == [(2, 3, 32, 32)]
    deployed(images(size=32))
    assert captures.replays == 1
    assert len(seen) == 2
    deployed(images(3, size=32))
    assert len(seen) == 2


def test_what_cannot_be_captured_says_so():
    deployed = timm_sk.deploy(filled('sknet_atto'), **SMALL, compile=False)

    def refuse(run, x):
        raise RuntimeError('operation not permitted when stream is capturing')

    with pytest.raises(ValueError, match=r'cannot be captured .*\(operation not permitted.*pass cuda_graph=False'):
        deployed.capture_forward(capture=refuse)
    assert deployed(images(size=32)).shape == (2, 10)


def test_graphs_are_for_cuda():
    with pytest.raises(ValueError, match='CUDA graphs are for models on cuda, got one on cpu: pass cuda_graph=False'):
        timm_sk.deploy(filled('sknet_atto'), **SMALL, cuda_graph=True)


@pytest.mark.parametrize('asked', ['torch.compiler.is_compiling', 'torch.jit.is_tracing'])
def test_tracers_and_compilers_see_the_forward_pass_and_not_the_graph(monkeypatch, asked):
    deployed, captures = captured(filled('sknet_atto'))
    monkeypatch.setattr(asked, lambda: True)
    deployed(images(size=32))
    assert captures.replays == 0
