"""How many groups are fastest for a grouped convolution: measured on the device, and remembered.

The measured choices are in `group_choices.json` in the folder of the local store, one for each device, torch version,
number of threads, data type, memory format and shape. Deleting the file is safe.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers.folded_conv import FoldedConv, is_plain
from ..layers.merged_groups import MergedConv, candidates
from ..models.inputs import image_shape
from ..models.modes import eval_mode
from .autotune import choose, measure, read_choices, setting, write_choices

FILE_NAME = 'group_choices.json'


@torch.no_grad()
def fastest_groups(conv: FoldedConv, input_shape: Sequence[int], *, channels_last: bool) -> int:
    """Measure a convolution unmerged and merged, on its device, as it runs in inference; it is left unmerged."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*input_shape, generator=generator).to(conv.weight)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    runs: dict[int, Callable[[], object]] = {}
    for number in candidates(conv.groups, conv.in_channels, conv.out_channels):
        twin = FoldedConv(conv, conv.weight, conv.bias)
        twin.activation = conv.activation
        twin.merge(number)
        if channels_last:
            twin.pack(input_shape)
        runs[number] = lambda twin=twin: twin(x)  # type: ignore[misc]
    if len(runs) == 1:
        return conv.groups
    return choose(measure(runs, conv.weight.device), conv.groups)


def merge_where_faster(
    shapes: Mapping[FoldedConv, Sequence[int]], *, channels_last: bool, remember: bool = True
) -> dict[FoldedConv, int]:
    """Merge the groups of convolutions where that is faster on inputs of these shapes.

    Args:
        shapes: Input shape [B, C, H, W] of each convolution.
        channels_last: Whether inputs are.
        remember: Read and write the file of earlier choices.

    Returns:
        The groups of the convolutions that were merged.
    """
    grouped = {
        conv: list(shape)
        for conv, shape in shapes.items()
        if len(candidates(conv.groups, conv.in_channels, conv.out_channels)) > 1
    }
    if not grouped:
        return {}
    known = read_choices(FILE_NAME, int) if remember else {}
    found: dict[str, int] = {}
    for conv, shape in grouped.items():
        key = key_of(conv, shape, channels_last=channels_last)
        number = known.get(key, found.get(key))
        if number is None or number not in candidates(conv.groups, conv.in_channels, conv.out_channels):
            number = found[key] = fastest_groups(conv, shape, channels_last=channels_last)
        conv.merge(number)
    if remember and found:
        write_choices(FILE_NAME, found, int)
    return {conv: conv.wide_groups for conv in grouped if conv.wide_groups != conv.groups}


def key_of(conv: nn.Conv2d, input_shape: Sequence[int], *, channels_last: bool) -> str:
    """Everything that a choice depends on, as a line of text."""
    return ' | '.join(
        [
            *setting(conv.weight, channels_last=channels_last),
            f'{list(input_shape)} to {conv.out_channels}, kernel {conv.kernel_size}, stride {conv.stride}, '
            f'padding {conv.padding}, dilation {conv.dilation}, groups {conv.groups}',
        ]
    )


def merge_groups_for_training(
    model: nn.Module,
    *,
    batch_size: int,
    input_size: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    remember: bool = True,
) -> dict[str, int]:
    """Let grouped convolutions train with fewer, wider groups, in place, where that is faster.

    Each convolution is measured on its device, forward and backward, with inputs of the shape that it gets. The
    function stays, and so do the parameters and their names: checkpoints go in and out as before, and an optimizer may
    be made before or after. Outputs and gradients are the same up to rounding.

    Args:
        model: A model on its device and in its memory format, in either mode.
        batch_size: Pictures in a step on this device.
        input_size: Channels, height and width of a picture; None for the size of the model's checkpoint.
        autocast: The dtype of the autocast under which it is to train, or None.
        remember: Keep what is measured in the local store, and use what was measured before.

    Returns:
        By the name of each merged convolution, the number of groups that it computes with.

    Raises:
        ValueError: If a size is not made of positive integers, or the model does not take such pictures.
    """
    calls = _grouped_calls(model, image_shape(model, batch_size, input_size), autocast)
    known = read_choices(FILE_NAME, int) if remember else {}
    found: dict[str, int] = {}
    merged: dict[str, int] = {}
    for name, call in calls.items():
        conv = call.conv
        key = f'{call.key()} | training, autocast {autocast}'
        number = known.get(key, found.get(key))
        if number is None or number not in candidates(conv.groups, conv.in_channels, conv.out_channels):
            with torch.enable_grad():
                number = found[key] = fastest_in_training(call, autocast)
        if number != conv.groups:
            merged[name] = number
            owner, _, leaf = name.rpartition('.')
            setattr(model.get_submodule(owner), leaf, MergedConv(conv, number))
    if remember and found:
        write_choices(FILE_NAME, found, int)
    return merged


class Call(NamedTuple):
    """A convolution, and what its input is like.

    Attributes:
        conv: The convolution.
        shape: B, C, H and W.
        dtype: The input's.
        channels_last: Whether the input is.
    """

    conv: nn.Conv2d
    shape: list[int]
    dtype: torch.dtype
    channels_last: bool

    def key(self) -> str:
        """What its speed depends on, as a line of text."""
        return f'{key_of(self.conv, self.shape, channels_last=self.channels_last)} | {self.dtype}'

    def picture(self) -> Tensor:
        """A random input."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(0)).to(self.conv.weight.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def fastest_in_training(call: Call, autocast: torch.dtype | None) -> int:
    """Measure a convolution unmerged and merged, forward and backward; it is left as it is."""
    device = call.conv.weight.device
    x = call.picture().requires_grad_()
    runs: dict[int, Callable[[], object]] = {}
    for number in candidates(call.conv.groups, call.conv.in_channels, call.conv.out_channels):
        twin = copy.deepcopy(call.conv).requires_grad_()
        conv = twin if number == twin.groups else MergedConv(twin, number)

        def run(conv: nn.Conv2d = conv) -> object:
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                output = conv(x)
            return torch.autograd.grad(output, [x, *conv.parameters()], output.detach())

        runs[number] = run
    return choose(measure(runs, device), call.conv.groups)


def _grouped_calls(model: nn.Module, shape: Sequence[int], autocast: torch.dtype | None) -> dict[str, Call]:
    """The calls of grouped convolutions that could be merged, by name, in one forward pass that changes nothing."""
    calls: dict[str, Call] = {}
    hooks = []
    for name, conv in model.named_modules():
        if not is_plain(conv) or type(conv) is MergedConv or conv._forward_hooks or conv._forward_pre_hooks:
            continue
        if len(candidates(conv.groups, conv.in_channels, conv.out_channels)) == 1:
            continue

        def note(module: nn.Conv2d, args: tuple[Tensor, ...], name: str = name) -> None:
            x = args[0]
            nhwc = x.is_contiguous(memory_format=torch.channels_last)
            calls[name] = Call(module, list(x.shape), x.dtype, nhwc)

        hooks.append(conv.register_forward_pre_hook(note))
    like = next(model.parameters(), torch.empty(0))
    x = torch.full(tuple(shape), 0.5, dtype=like.dtype, device=like.device)
    try:
        mixed = torch.autocast(like.device.type, autocast, enabled=autocast is not None)
        with eval_mode(model), torch.no_grad(), mixed:
            model(x.contiguous(memory_format=_format_of(model)))
    except RuntimeError as error:
        raise ValueError(
            f'The model does not take pictures of {list(shape[1:])}: pass its input_size. ({error})'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _format_of(model: nn.Module) -> torch.memory_format:
    """The memory format of a model's weights, which its inputs are to have too."""
    kernels = (parameter for parameter in model.parameters() if parameter.dim() == 4)
    nhwc = any(k.is_contiguous(memory_format=torch.channels_last) and not k.is_contiguous() for k in kernels)
    return torch.channels_last if nhwc else torch.contiguous_format
