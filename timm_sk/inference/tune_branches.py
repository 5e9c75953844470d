"""Which form of an SK unit's two branches is fastest on a GPU: measured on the device, and remembered.

Forms are 'separate', which is the folded convolutions with fuse and select after them, and those of
`layers.two_branch`. The measured choices are in `branch_choices.json` beside `group_choices.json`, one for each device,
versions of torch and Triton, data type and shape. Deleting the file is safe.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import nn

from ..layers.folded_conv import FoldedConv, put
from ..layers.fused_selective_kernel import FORMS, TwoBranchSelectiveKernel, can_replace, convolutions
from ..layers.selective_kernel import SelectiveKernel
from ..ops import kernels
from .autotune import choose, measure, read_choices, setting, write_choices

FILE_NAME = 'branch_choices.json'
SEPARATE = 'separate'

_logger = logging.getLogger(__name__)


def replace_where_faster(
    model: nn.Module,
    shapes: Mapping[FoldedConv, Sequence[int]],
    *,
    remember: bool = True,
    interpret: bool = False,
) -> dict[str, str]:
    """Let one kernel compute the branches of a folded model's units where that is faster, in place.

    Only on a GPU, with inputs that are channels last. Groups are to be merged before, where that is faster.

    Args:
        model: The folded model.
        shapes: Input shape [B, C, H, W] of each folded convolution.
        remember: Read and write the file of earlier choices.
        interpret: Measure on a CPU too, if Triton's interpreter is on; for tests.

    Returns:
        The forms of the units that were replaced, by path.
    """
    units: dict[str, SelectiveKernel] = {
        path: unit
        for path, unit in model.named_modules()
        if can_replace(unit) and convolutions(unit)[0] in shapes and _runs_on_device(unit, interpret)
    }
    if not units or not kernels.load('two_branch'):
        return {}
    known = read_choices(FILE_NAME, str) if remember else {}
    found: dict[str, str] = {}
    forms: dict[str, str] = {}
    for path, unit in units.items():
        shape = shapes[convolutions(unit)[0]]
        key = key_of(unit, shape)
        form = known.get(key, found.get(key))
        if form not in (SEPARATE, *FORMS):
            form = found[key] = fastest_form(unit, shape)
        if form != SEPARATE:
            put(model, path, TwoBranchSelectiveKernel(unit, form))
            forms[path] = form
    if remember and found:
        write_choices(FILE_NAME, found, str)
    return forms


@torch.no_grad()
def fastest_form(unit: SelectiveKernel, input_shape: Sequence[int]) -> str:
    """Measure a unit in each form, on its device, without compiling it; it is left as it is.

    `torch.compile` would take seconds for each form and shape.
    """
    weight = convolutions(unit)[0].weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*input_shape, generator=generator).to(weight).contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {SEPARATE: partial(unit, x)}
    for form in FORMS:
        try:
            joined = TwoBranchSelectiveKernel(copy.deepcopy(unit), form)
            joined(x)
            runs[form] = partial(joined, x)
        except Exception as error:  # what Triton raises where it cannot build or launch has no class in common
            _tell(f'SK units do without the two-branch kernel: {type(error).__name__}: {error}')
    return choose(measure(runs, weight.device), SEPARATE)


@cache
def _tell(message: str) -> None:
    """Log a message, once."""
    _logger.warning(message)


def key_of(unit: SelectiveKernel, input_shape: Sequence[int]) -> str:
    """Everything that a choice depends on, as a line of text; for where Triton is installed."""
    import triton  # which importing this module does not need

    first, second = convolutions(unit)
    return ' | '.join(
        [
            *setting(first.weight, channels_last=True),
            f'triton {triton.__version__}',
            f'{list(input_shape)} to {unit.out_channels}, stride {first.stride}, dilations {first.dilation} and '
            f'{second.dilation}, groups {first.groups} as {first.wide_groups} and {second.wide_groups}',
        ]
    )


def _runs_on_device(unit: SelectiveKernel, interpret: bool) -> bool:
    device = convolutions(unit)[0].weight.device
    return kernels.runs_on(device) and (device.type == 'cuda' or interpret)
