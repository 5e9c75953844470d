"""The convolutions of a model alone, one after another, each on its real input."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inference.conv_inputs import observe_convs

Replay = Callable[[], object]


def record_convs(module: nn.Module, run: Callable[[], object]) -> list[Replay]:
    """Functions that repeat every call of an `nn.Conv2d` in a forward pass, in order.

    Each computes what the model did: the output, or if that has a graph, the gradients of input, weight and bias for a
    random gradient of the output. Under autocast, input and weight are cast here, once.
    """
    replays: list[Replay] = []

    def observe(conv: nn.Conv2d, x: Tensor, output: Tensor) -> None:
        def leaf(tensor: Tensor) -> Tensor:
            needs_gradient = output.requires_grad and tensor.requires_grad
            return tensor.detach().to(output.dtype, copy=True).requires_grad_(needs_gradient)

        inputs = [leaf(tensor) for tensor in (x, conv.weight, conv.bias) if tensor is not None]
        bias = None if conv.bias is None else inputs[2]
        settings: Any = conv.stride, conv.padding, conv.dilation, conv.groups
        gradient = torch.randn_like(output) if output.requires_grad else None

        def replay() -> object:
            with torch.set_grad_enabled(gradient is not None):
                found = F.conv2d(inputs[0], inputs[1], bias, *settings)
            if gradient is None:
                return found
            return torch.autograd.grad(found, [tensor for tensor in inputs if tensor.requires_grad], gradient)

        replays.append(replay)

    observe_convs([conv for conv in module.modules() if isinstance(conv, nn.Conv2d)], run, observe)
    return replays
