"""The effective receptive field that each unit's output ends up with, measured by gradients.

After "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (Luo, Li, Urtasun, Zemel,
NeurIPS 2016): the gradient of the output's middle with respect to the picture, and the side of a square of as many
pixels as have a gradient above 1 - 95.45 % of the largest.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ..attention import selecting_units
from ..models.modes import eval_mode
from .units import inner_model

_SHARE = 1 - 0.9545  # two standard deviations of a Gaussian lie within the rest


def receptive_fields(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Measure the effective receptive field of each unit's output, for each picture, in eval mode.

    What is differentiated is the sum over the channels of the output in the middle; a picture's pixel counts by the sum
    over its channels of the gradients' sizes. All of the unit counts, the weights of the selection too, through which
    each pixel has some effect. A field ends where the picture does.

    Args:
        model: A model with `SelectiveKernel` or `SplitAttention` units; each module is afterwards in the mode that it
            was in.
        x: Pictures [B, in_chans, H, W].

    Returns:
        The side [B] in pixels of the picture by the path of each unit, in the order in which they ran; 0 where no pixel
        has an effect.

    Raises:
        ValueError: If the model has no unit with attention.
    """
    model = inner_model(model)
    middles: dict[str, Tensor] = {}
    with eval_mode(model), ExitStack() as hooks, torch.inference_mode(False), torch.enable_grad():
        for path, unit in selecting_units(model):
            hooks.callback(unit.register_forward_hook(partial(_keep_middle, middles, path)).remove)
        pictures = x.detach().clone().requires_grad_()
        model(pictures)
        return {path: _extent(middle, pictures) for path, middle in middles.items()}


def _keep_middle(
    middles: dict[str, Tensor], path: str, unit: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
) -> None:
    middles[path] = out[:, :, out.shape[2] // 2, out.shape[3] // 2].float().sum()


def _extent(middle: Tensor, pictures: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(middle, pictures, retain_graph=True)
    strength = gradient.float().abs().sum(dim=1).flatten(1)  # [B, H * W]
    return (strength > _SHARE * strength.amax(dim=1, keepdim=True)).sum(dim=1).sqrt()
