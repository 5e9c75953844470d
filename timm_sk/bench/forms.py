"""From a model in float32 with its weights to a step in the form that a variant names."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from .cases import DTYPES, MEMORY_FORMATS, Case, Variant
from .counterparts import build
from .steps import Inference, Step, Training


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
    if variant.form == 'deployed' or (variant == Variant('ours', 'compiled') and not training):
        return Inference(_deployed(variant, case, deepcopy(model).to(labels.device), dtype), pictures)
    model = reparameterize_model(model) if variant.form == 'reparameterized' else deepcopy(model)
    model = model.to(labels.device).to(memory_format=memory_format)
    if variant.form == 'merged':
        _merge(model, case, dtype)
    if training:
        forward = torch.compile(model) if variant.form == 'compiled' else model
        return Training(model, pictures, labels, dtype=dtype, forward=forward)
    model = model.to(dtype)
    return Inference(model, pictures, forward=torch.compile(model) if variant.form == 'compiled' else model)


def _merge(model: nn.Module, case: Case, dtype: torch.dtype) -> None:
    from .. import merge_groups_for_training

    autocast = None if dtype is torch.float32 else dtype
    merge_groups_for_training(model, batch_size=case.batch, input_size=(3, case.size, case.size), autocast=autocast)


def _deployed(variant: Variant, case: Case, model: nn.Module, dtype: torch.dtype) -> nn.Module:
    from .. import deploy

    return deploy(
        model,
        input_size=(3, case.size, case.size),
        batch_size=case.batch,
        dtype=dtype,
        channels_last=case.memory_format == 'channels_last',
        compile=variant.form == 'compiled',
    )
