"""The inputs of a model's convolutions in one forward pass."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor, nn

Conv = TypeVar('Conv', bound=nn.Conv2d)


def observe_convs(
    convs: Iterable[Conv], run: Callable[[], object], observe: Callable[[Conv, Tensor, Tensor], None]
) -> None:
    """Call `observe` with each convolution, its input and its output, in the order in which `run` calls them."""
    with ExitStack() as hooks:
        for conv in convs:
            hooks.enter_context(conv.register_forward_hook(lambda conv, args, output: observe(conv, args[0], output)))
        run()


def conv_inputs(convs: Iterable[Conv], run: Callable[[Tensor], object], x: Tensor) -> dict[Conv, Tensor]:
    """The last input of each convolution in a model, without its values, as a tensor on the meta device.

    Raises:
        ValueError: If the model does not take such inputs.
    """
    inputs: dict[Conv, Tensor] = {}

    def observe(conv: Conv, x: Tensor, output: Tensor) -> None:
        inputs[conv] = x.detach().to('meta')

    try:
        observe_convs(convs, lambda: run(x), observe)
    except RuntimeError as error:
        raise ValueError(
            f'The model does not take images of {list(x.shape[1:])}: pass its input_size. ({error})'
        ) from error
    return inputs


def random_input(like: Tensor, device: torch.device) -> Tensor:
    """A random tensor of the shape, dtype and memory format of another one, from a fixed seed."""
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(device, like.dtype)
    return x.contiguous(memory_format=memory_format_of(like))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last if a 4-d tensor has that format, else contiguous."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format
