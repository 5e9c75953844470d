"""The floor: the convolutions of a net alone, one after another, each on its real input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution as the net called it.

    Attributes:
        picture: Its input, in the dtype it computes in and the memory format in which it arrived.
        weight: In the same dtype.
        bias: In the same dtype, or None.
        settings: Stride, padding, dilation and groups.
        output_gradient: Random, in the output's format; None at inference.
    """

    picture: Tensor
    weight: Tensor
    bias: Tensor | None
    settings: dict[str, Any]
    output_gradient: Tensor | None

    def run(self) -> Tensor:
        """The forward pass."""
        return F.conv2d(self.picture, self.weight, self.bias, **self.settings)


def record(module: nn.Module, run: Callable[[], object]) -> list[Convolution]:
    """Every call of an `nn.Conv2d` in a module, in order, 1x1 ones and those of pooled features included.

    Under autocast input and weight are cast here, once: the cast is no part of the convolution.

    Args:
        module: The net.
        run: Calls it once. Where the outputs have a graph, random gradients are drawn for them.
    """
    found: list[Convolution] = []

    def keep(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        picture, dtype = inputs[0], output.dtype
        learns = output.requires_grad

        def own(tensor: Tensor, needs_gradient: bool) -> Tensor:
            return tensor.detach().to(dtype, copy=True).requires_grad_(learns and needs_gradient)

        found.append(
            Convolution(
                picture=own(picture, picture.requires_grad),
                weight=own(conv.weight, True),
                bias=None if conv.bias is None else own(conv.bias, True),
                settings=dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups),
                output_gradient=torch.randn_like(output) if learns else None,
            )
        )

    hooks = [conv.register_forward_hook(keep) for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def floor_step(convolutions: Sequence[Convolution]) -> Callable[[int], None]:
    """A step that runs them all: forward, and where there are output gradients backward too."""

    def step(_: int) -> None:
        for convolution in convolutions:
            if convolution.output_gradient is None:
                with torch.no_grad():
                    convolution.run()
                continue
            tensors = (convolution.picture, convolution.weight, convolution.bias)
            learnt = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
            torch.autograd.grad(convolution.run(), learnt, convolution.output_gradient)

    return step
