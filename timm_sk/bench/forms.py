"""From a model in float32 with its weights to a step in the form that a variant names."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ..inference.cuda_graph import GraphedForward
from ..ops import kernels
from .counterparts import build
from .matrix import DTYPES, GRAPH, MEMORY_FORMATS, Case, Variant
from .steps import Inference, Step, Training

# Without CUDA graphs, which have a form of their own: so this one differs from `compiled` in its kernels alone, it
# trains, and its peak memory is that of its steps.
MAX_AUTOTUNE = 'max-autotune-no-cudagraphs'

_SETTINGS: dict[str, dict[str, bool]] = {  # of `deploy`
    'folded': dict(merge_groups=False, join_branches=False),
    'folded_merged': dict(join_branches=False),
    'folded_joined': dict(merge_groups=False),
    'inductor': dict(join_branches=False),
}


def loaded(side: str, case: Case, weights: dict[str, Tensor]) -> nn.Module:
    """One side's model of a case with given weights, in eval mode."""
    model = build(side, case.arch, branches=case.branches)
    model.load_state_dict(weights)
    return model.eval()


def prepare(variant: Variant, case: Case, model: nn.Module, pictures: Sequence[Tensor], labels: Tensor) -> Step:
    """The step of a variant.

    Args:
        variant: Which.
        case: In which setting.
        model: The side's model from `loaded`; it is left as it is.
        pictures: Input sets in float32 on the device.
        labels: [B], on the device.
    """
    dtype = DTYPES[case.dtype]
    memory_format = MEMORY_FORMATS[case.memory_format]
    training = case.task == 'training'
    pictures = [p.to(torch.float32 if training else dtype, memory_format=memory_format) for p in pictures]
    form = variant.form.removesuffix(GRAPH)
    if variant.side == 'ours' and not training and form not in ('eager', 'reparameterized'):
        copy = deepcopy(model).to(labels.device)
        if form == 'inductor':
            deployed = _without_kernels(lambda: _deployed(variant, case, copy, dtype))
            return Inference(deployed, pictures, forward=lambda x: _without_kernels(lambda: deployed(x)))
        deployed = _deployed(variant, case, copy, dtype)
        forward = _compiled(form, deployed.model) if form == 'max_autotune' else None
        return Inference(deployed, pictures, forward=forward)
    model = reparameterize_model(model) if form == 'reparameterized' else deepcopy(model)
    model = model.to(labels.device).to(memory_format=memory_format)
    if form == 'merged':
        _merge(model, case, dtype)
    if training:
        return Training(model, pictures, labels, dtype=dtype, forward=_compiled(form, model))
    model = model.to(dtype)
    forward = _compiled(form, model)
    if variant.form != form:  # by the same means as ours
        forward = GraphedForward(forward, pictures[0])
    return Inference(model, pictures, forward=forward)


def _merge(model: nn.Module, case: Case, dtype: torch.dtype) -> None:
    from .. import merge_groups_for_training

    autocast = None if dtype is torch.float32 else dtype
    merge_groups_for_training(model, batch_size=case.batch, input_size=(3, case.size, case.size), autocast=autocast)


def _compiled(form: str, model: nn.Module) -> Callable[[Tensor], Any]:
    """How a model is called in a form."""
    if form == 'max_autotune':
        return torch.compile(model, mode=MAX_AUTOTUNE)
    return torch.compile(model) if form == 'compiled' else model


def _without_kernels(run: Callable[[], Any]) -> Any:
    """Run what compiles, or what was compiled so: its guards check the setting at each call."""
    kernels.IN_COMPILED_GRAPHS = False
    try:
        return run()
    finally:
        kernels.IN_COMPILED_GRAPHS = True


def _deployed(variant: Variant, case: Case, model: nn.Module, dtype: torch.dtype) -> Any:
    from .. import deploy

    form = variant.form.removesuffix(GRAPH)
    return deploy(
        model,
        input_size=(3, case.size, case.size),
        batch_size=case.batch,
        dtype=dtype,
        channels_last=case.memory_format == 'channels_last',
        compile=form in ('compiled', 'inductor'),
        cuda_graph=variant.form != form,
        **_SETTINGS.get(form, {}),
    )
