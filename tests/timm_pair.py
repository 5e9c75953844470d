"""Our net and timm's, small and with the same random weights, for tests that treat both the same way."""

import copy
import functools
from typing import Any

import pytest
import timm
import timm.models
import torch
from random_weights import fill_model, make_input
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from variants import upstream

import timm_sk

SMALL: dict[str, Any] = dict(layers=[1, 1, 1, 1], channels=(16, 24, 32, 32), num_classes=5)
NETS: dict[str, dict[str, Any]] = {
    'skresnet18': SMALL,  # basic blocks, each branch has its share of the input channels
    'skresnext50_32x4d': SMALL | dict(channels=(16, 16, 32, 32)),  # bottlenecks with grouped convolutions
    'resnest14d': SMALL | dict(stem_width=8),
}
FORMS = ['plain', 'reparameterized', 'deployed']

each_net = pytest.mark.parametrize('name', NETS)
each_family = pytest.mark.parametrize('name', ['skresnext50_32x4d', 'resnest14d'])
each_form = pytest.mark.parametrize('form', FORMS)
each_mode = pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])


def pair(
    name: str, *, training: bool = False, dtype: torch.dtype = torch.float64, **kwargs: Any
) -> tuple[nn.Module, nn.Module]:
    """Our model and timm's."""
    models = _make_pair(name, **kwargs) if kwargs else copy.deepcopy(_small_pair(name))
    ours, theirs = (model.to(dtype).train(training) for model in models)
    return ours, theirs


def _make_pair(name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    theirs = fill_model(upstream(name, **NETS[name] | kwargs))
    ours = timm.create_model(name, **NETS[name] | kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


_small_pair = functools.cache(_make_pair)


def images(count: int = 4, size: int = 32, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return make_input((count, 3, size, size), seed=seed).to(dtype)


def in_form(model: nn.Module, form: str) -> nn.Module:
    """A model in eval mode as it is, with folded norms, or deployed."""
    if form == 'reparameterized':
        return timm.models.reparameterize_model(model)
    if form == 'deployed':
        return timm_sk.deploy(model, input_size=(3, 32, 32), batch_size=2, compile=False)
    return model


def weighed(output: Tensor) -> Tensor:
    """A loss with another gradient for each output."""
    return (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).sin()).sum()


def run_step(model: nn.Module, x: Tensor | None = None) -> dict[str, Tensor]:
    """Output, gradients of a loss with respect to the input and all parameters, and buffers after the pass."""
    x = (images() if x is None else x.clone()).requires_grad_()
    model.zero_grad()
    output = model(x)
    weighed(output).backward()
    gradients = {f'grad of {key}': p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {'output': output.detach(), 'grad of x': x.grad, **gradients, **dict(model.named_buffers())}


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Check that two structures of tensors are equal, within a share of the largest value in them."""
    found_leaves, found_layout = pytree.tree_flatten_with_path(found)
    expected_leaves, expected_layout = pytree.tree_flatten_with_path(expected)
    assert found_layout == expected_layout
    largest = max(
        (float(t.detach().abs().max()) for _, t in expected_leaves if isinstance(t, Tensor) and t.numel()), default=1
    )
    for (path, value), (_, other) in zip(found_leaves, expected_leaves, strict=True):
        if isinstance(other, Tensor):
            assert value.shape == other.shape, path
            torch.testing.assert_close(
                value, other, rtol=0, atol=tolerance * largest, msg=lambda m, path=path: f'{path}: {m}'
            )
        else:
            assert value == other, path


def assert_differs(found: Tensor, expected: Tensor) -> None:
    """Check that what was done to a net has changed its output: a tool that does nothing tests nothing."""
    assert float((found - expected).abs().max()) > 1e-3 * float(expected.abs().max())
