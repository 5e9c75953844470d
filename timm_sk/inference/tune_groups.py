"""The number of groups with which a grouped convolution is fastest: autotuned on the device."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..layers.folded_conv import FoldedConv, is_plain, put
from ..layers.merged_groups import MergedConv, candidates
from ..models.inputs import image_shape
from ..models.modes import eval_mode
from .autotune import AutotuneCache, measure, pick_fastest, setting
from .conv_inputs import conv_inputs, memory_format_of, random_input


def merge_where_faster(inputs: Mapping[FoldedConv, Tensor], *, remember: bool) -> None:
    """Merge the groups of folded convolutions in place, where that is faster in inference."""
    cache = AutotuneCache(remember=remember)
    for conv, x in inputs.items():
        if len(group_counts(conv)) > 1:
            conv.merge(cache.fastest(key_of(conv, x), group_counts(conv), partial(fastest_groups, conv, x)))
    cache.save()


def group_counts(conv: nn.Conv2d) -> list[int]:
    """The candidates of a convolution, its own number of groups first."""
    return candidates(conv.groups, conv.in_channels, conv.out_channels)


def key_of(conv: nn.Conv2d, x: Tensor) -> str:
    """Everything that a result depends on, as a line of text."""
    layer = (
        f'{list(x.shape)} to {conv.out_channels}, kernel {conv.kernel_size}, stride {conv.stride}, '
        f'padding {conv.padding}, dilation {conv.dilation}, groups {conv.groups}'
    )
    return ' | '.join([*setting(conv.weight, x), layer])


@torch.no_grad()
def fastest_groups(conv: FoldedConv, like: Tensor) -> int:
    """Measure copies of a folded convolution with each number of groups in inference."""
    x = random_input(like, conv.weight.device)
    runs: dict[int, Callable[[], object]] = {}
    for number in group_counts(conv):
        merged = FoldedConv(conv, conv.weight, conv.bias)
        merged.activation = conv.activation
        merged.merge(number)
        if memory_format_of(x) is torch.channels_last:
            merged.pack(x.shape)
        runs[number] = partial(merged, x)
    return pick_fastest(measure(runs, x.device), conv.groups)


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
    function, the parameters and their names stay: checkpoints load and save as before, and an optimizer may be made
    before or after. Outputs and gradients are the same up to rounding.

    Args:
        model: Model on its device and in its memory format, in train or eval mode.
        batch_size: Images in a step on this device.
        input_size: Channels, height and width of an image; None for the size of the model's checkpoint.
        autocast: Dtype of the autocast under which the model will train, or None.
        remember: Read and write the file of earlier results in the local store.

    Returns:
        The number of groups that each merged convolution computes with, by its name.

    Raises:
        ValueError: If a size is not made of positive integers, or the model does not take such images.
    """
    shape = image_shape(model, batch_size, input_size)
    names = {
        conv: name
        for name, conv in model.named_modules()
        if is_plain(conv) and type(conv) is not MergedConv and len(group_counts(conv)) > 1
    }
    like = next(model.parameters(), torch.empty(0))
    x = torch.full(tuple(shape), 0.5, dtype=like.dtype, device=like.device).contiguous(memory_format=_format_of(model))
    with eval_mode(model), torch.no_grad(), torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        inputs = conv_inputs(names, model, x)
    cache = AutotuneCache(remember=remember)
    merged: dict[str, int] = {}
    for conv, seen in inputs.items():
        key = f'{key_of(conv, seen)} | {seen.dtype} | training, autocast {autocast}'
        number = cache.fastest(key, group_counts(conv), partial(fastest_in_training, conv, seen, autocast))
        if number != conv.groups:
            merged[names[conv]] = number
            put(model, names[conv], MergedConv(conv, number))
    cache.save()
    return merged


@torch.enable_grad()
def fastest_in_training(conv: nn.Conv2d, like: Tensor, autocast: torch.dtype | None) -> int:
    """Measure copies of a convolution with each number of groups, forward and backward, under autocast to a dtype."""
    x = random_input(like, conv.weight.device).requires_grad_()
    baseline = copy.deepcopy(conv).requires_grad_()

    def run(number: int) -> object:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            output = layers[number](x)
        return torch.autograd.grad(output, [x, *layers[number].parameters()], output.detach())

    layers = {number: MergedConv(baseline, number) for number in group_counts(conv)} | {conv.groups: baseline}
    return pick_fastest(measure({number: partial(run, number) for number in layers}, x.device), conv.groups)


def _format_of(model: nn.Module) -> torch.memory_format:
    """The memory format of a model's weights, which its inputs should have too."""
    kernels = (parameter for parameter in model.parameters() if parameter.dim() == 4)
    nhwc = any(k.is_contiguous(memory_format=torch.channels_last) and not k.is_contiguous() for k in kernels)
    return torch.channels_last if nhwc else torch.contiguous_format
