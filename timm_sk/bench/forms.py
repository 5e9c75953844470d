"""From a float32 model to a step in the form of a variant."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ..inference.cuda_graph import GraphedForward
from ..inference.deployment import deploy
from ..inference.tune_groups import merge_groups_for_training
from ..ops import kernels
from .counterparts import build
from .matrix import DTYPES, GRAPH, MEMORY_FORMATS, Case, Variant
from .steps import Inference, Step, Training

# CUDA graphs have a form of their own. So this one differs from `compiled` in its kernels only, it can train, and its
# peak memory is that of its steps.
MAX_AUTOTUNE = 'max-autotune-no-cudagraphs'

_DEPLOY_ARGUMENTS: dict[str, dict[str, Any]] = {
    'folded': dict(merge_groups=False, join_branches=False),
    'folded_merged': dict(join_branches=False),
    'folded_joined': dict(merge_groups=False),
    'inductor': dict(join_branches=False),
}


def prepare(variant: Variant, case: Case, weights: dict[str, Tensor], images: Sequence[Tensor], labels: Tensor) -> Step:
    """Build the model of a variant, load its weights, and return its step on float32 batches on the device."""
    dtype, memory_format = DTYPES[case.dtype], MEMORY_FORMATS[case.memory_format]
    training = case.task == 'training'
    images = [x.to(torch.float32 if training else dtype, memory_format=memory_format) for x in images]
    form = variant.form.removesuffix(GRAPH)
    model = build(variant.side, case.arch, branches=case.branches)
    model.load_state_dict(weights)
    model.eval().to(labels.device)
    if variant.side == 'ours' and not training and form not in ('eager', 'reparameterized'):
        if form == 'inductor':
            deployed = _without_kernels(lambda: _deployed(variant, case, model))
            return Inference(deployed, images, forward=lambda x: _without_kernels(lambda: deployed(x)))
        deployed = _deployed(variant, case, model)
        return Inference(deployed, images, forward=_compiled(form, deployed.model) if form == 'max_autotune' else None)
    if form == 'reparameterized':
        model = reparameterize_model(model)
    model = model.to(memory_format=memory_format)
    if form == 'merged':
        autocast = None if dtype is torch.float32 else dtype
        merge_groups_for_training(model, batch_size=case.batch, input_size=(3, case.size, case.size), autocast=autocast)
    if training:
        return Training(model, images, labels, dtype=dtype, forward=_compiled(form, model))
    model = model.to(dtype)
    forward = _compiled(form, model)
    if variant.form != form:
        forward = GraphedForward(forward, images[0])  # as `deploy` makes ours
    return Inference(model, images, forward=forward)


def _compiled(form: str, model: nn.Module) -> Callable[[Tensor], Any]:
    """The model, compiled if the form says so."""
    if form == 'max_autotune':
        return torch.compile(model, mode=MAX_AUTOTUNE)
    return torch.compile(model) if form == 'compiled' else model


def _without_kernels(run: Callable[[], Any]) -> Any:
    """Compile, or run what was compiled, without our kernels; guards of compiled code check the flag at each call."""
    kernels.IN_COMPILED_GRAPHS = False
    try:
        return run()
    finally:
        kernels.IN_COMPILED_GRAPHS = True


def _deployed(variant: Variant, case: Case, model: nn.Module) -> Any:
    form = variant.form.removesuffix(GRAPH)
    return deploy(
        model,
        input_size=(3, case.size, case.size),
        batch_size=case.batch,
        dtype=DTYPES[case.dtype],
        channels_last=case.memory_format == 'channels_last',
        compile=form in ('compiled', 'inductor'),
        cuda_graph=variant.form != form,
        **_DEPLOY_ARGUMENTS.get(form, {}),
    )
