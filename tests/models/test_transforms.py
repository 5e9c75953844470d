"""Transforms of torch.func and batched backward passes, by value with timm's class."""

from collections.abc import Callable

import pytest
import torch
from timm_pair import assert_same, each_mode, each_net, images, pair, weighed
from torch import Tensor, func, nn
from torch.autograd import functional

Tensors = dict[str, Tensor]


def state(model: nn.Module) -> tuple[Tensors, Tensors]:
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}
    return parameters, {key: buffer.clone() for key, buffer in model.named_buffers()}


def pure(model: nn.Module, buffers: Tensors) -> Callable[[Tensors, Tensor], tuple[Tensor, Tensors]]:
    """A model as a function of parameters and images, which returns output and moved buffers.

    The transforms of torch.func allow no in-place write on what they did not make: buffers are copied inside.
    """

    def call(parameters: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        moved = {key: buffer.clone() for key, buffer in buffers.items()}
        return func.functional_call(model, (parameters, moved), x), moved

    return call


def compared(transform: Callable[[nn.Module], object]) -> Callable[[str, bool], None]:
    """A test that a transform gives the same for our net and timm's."""

    @each_net
    @each_mode
    def test(name: str, training: bool) -> None:
        assert_same(*map(transform, pair(name, training=training)))

    return test


@compared
def test_grad_of_parameters_by_functional_call(model):
    parameters, buffers = state(model)

    def loss(parameters: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        output, moved = pure(model, buffers)(parameters, x)
        return weighed(output), moved

    return func.grad(loss, argnums=(0, 1), has_aux=True)(parameters, images())


@compared
def test_vjp_and_jvp(model):
    parameters, buffers = state(model)

    def call(x: Tensor) -> tuple[Tensor, Tensors]:
        return pure(model, buffers)(parameters, x)

    output, pull, moved = func.vjp(call, images(), has_aux=True)
    return output, pull(output.sin()), moved, func.jvp(call, (images(),), (images(seed=1),), has_aux=True)


@compared
def test_jacrev_and_jacfwd(model):
    parameters, buffers = state(model)

    def call(own: Tensors, x: Tensor) -> Tensor:
        return pure(model, buffers)({**parameters, **own}, x)[0]

    norms = {key: tensor for key, tensor in parameters.items() if key.endswith(('bn1.bias', 'bn0.bias'))}
    own = {key: parameters[key] for key in list(parameters)[-4:]}
    return func.jacrev(call, argnums=(0, 1))(own, images(3)), func.jacfwd(call)(norms, images(3))


@each_net
def test_vmap_over_images(name):
    def transform(model: nn.Module) -> object:
        return func.vmap(lambda image: model(image[None])[0])(images())

    ours, theirs = pair(name)
    assert_same(transform(ours), transform(theirs))
    assert_same(transform(ours), ours(images()))


@each_net
@pytest.mark.parametrize('chunk_size', [None, 2])
def test_gradients_of_each_image(name, chunk_size):
    def transform(model: nn.Module) -> object:
        parameters, buffers = state(model)

        def loss(parameters: Tensors, image: Tensor) -> Tensor:
            return weighed(func.functional_call(model, (parameters, buffers), image[None]))

        return func.vmap(func.grad(loss), in_dims=(None, 0), chunk_size=chunk_size)(parameters, images())

    assert_same(*map(transform, pair(name)))


@compared
def test_ensemble_by_vmap_over_stacked_parameters(model):
    parameters, buffers = state(model)
    parameters, buffers = (
        {key: torch.stack([tensor, tensor + tensor.cos().to(tensor.dtype)]) for key, tensor in tensors.items()}
        for tensors in (parameters, buffers)
    )

    def loss(parameters: Tensors, buffers: Tensors) -> Tensor:
        return weighed(func.functional_call(model, (parameters, buffers), images()))

    return func.vmap(func.grad_and_value(loss))(parameters, buffers), buffers


@compared
def test_batched_gradients(model):
    """`is_grads_batched`, and `vmap` over `torch.autograd.grad`, give what a loop gives."""
    x = images().requires_grad_()
    output = model(x)
    inputs = [x, *model.parameters()]
    cotangents = torch.stack([images(seed=seed).flatten()[: output.numel()].view_as(output) for seed in range(3)])

    def pull(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, inputs, cotangent, retain_graph=True)

    loop = [torch.stack(gradients) for gradients in zip(*map(pull, cotangents), strict=True)]
    assert_same([*func.vmap(pull)(cotangents)], loop)
    assert_same([*torch.autograd.grad(output, inputs, cotangents, is_grads_batched=True, retain_graph=True)], loop)
    return loop


@compared
def test_second_derivatives(model):
    return functional.hvp(lambda x: weighed(model(x)), images(), images(seed=1))
