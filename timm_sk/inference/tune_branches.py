"""The form in which an SK unit's two branches are fastest on a GPU: autotuned on the device.

Candidates are 'separate', which is the folded convolutions with fuse and select after them, and the forms of
`layers.fused_selective_kernel`.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn

from ..layers.folded_conv import FoldedConv, put
from ..layers.fused_selective_kernel import FORMS, TwoBranchSelectiveKernel, can_replace, convolutions
from ..layers.selective_kernel import SelectiveKernel
from ..ops import kernels
from .autotune import AutotuneCache, measure, pick_fastest, setting
from .conv_inputs import random_input

SEPARATE = 'separate'

_logger = logging.getLogger(__name__)


def replace_where_faster(
    model: nn.Module,
    inputs: Mapping[FoldedConv, Tensor],
    *,
    remember: bool = True,
    interpret: bool = False,
) -> dict[str, str]:
    """Let one kernel compute both branches of a folded model's units, in place, where that is faster.

    Only on a GPU (tests `interpret` on a CPU, in Triton's interpreter), with channels-last inputs. Merge groups before,
    where that is faster. Returns the forms of the units that were replaced, by path.
    """
    tuned = AutotuneCache(remember=remember)
    forms: dict[str, str] = {}
    for path, unit in list(model.named_modules()):
        if not can_replace(unit) or (first := convolutions(unit)[0]) not in inputs:
            continue
        x, device = inputs[first], first.weight.device
        if not (kernels.runs_on(device) and (device.type == 'cuda' or interpret) and kernels.load('two_branch')):
            continue
        form = tuned.fastest(key_of(unit, x), [SEPARATE, *FORMS], partial(fastest_form, unit, x))
        if form != SEPARATE:
            put(model, path, TwoBranchSelectiveKernel(unit, form))
            forms[path] = form
    tuned.save()
    return forms


@torch.no_grad()
def fastest_form(unit: SelectiveKernel, like: Tensor) -> str:
    """Measure a folded unit in each form, without `torch.compile`, which would take seconds for each."""
    x = random_input(like, convolutions(unit)[0].weight.device)
    runs: dict[str, Callable[[], object]] = {SEPARATE: partial(unit, x)}
    for form in FORMS:
        try:
            fused = TwoBranchSelectiveKernel(copy.deepcopy(unit), form)
            fused(x)
            runs[form] = partial(fused, x)
        except Exception as error:  # what Triton raises if it cannot build or launch has no class in common
            _log_once(f'The two-branch kernel is not used: {type(error).__name__}: {error}')
    return pick_fastest(measure(runs, x.device), SEPARATE)


@cache
def _log_once(message: str) -> None:
    _logger.warning(message)


def key_of(unit: SelectiveKernel, x: Tensor) -> str:
    """Everything that a result depends on, as a line of text; needs Triton."""
    import triton  # not installed on every machine

    first, second = convolutions(unit)
    layers = (
        f'{list(x.shape)} to {unit.out_channels}, stride {first.stride}, dilations {first.dilation} and '
        f'{second.dilation}, groups {first.groups} as {first.wide_groups} and {second.wide_groups}'
    )
    return ' | '.join([*setting(first.weight, x), f'triton {triton.__version__}', layers])
