"""The effective receptive field of each unit's output, measured by gradients.

After "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (Luo, Li, Urtasun, Zemel,
NeurIPS 2016): the gradient of the output's center with respect to the image, and the side of a square of as many pixels
as have a gradient above 1 - 95.45 % of the largest.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ..attention import selecting_units
from ..inference.deployment import inner_model
from ..models.modes import eval_mode

_SHARE = 1 - 0.9545  # two standard deviations of a Gaussian contain the rest


def receptive_fields(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Measure the effective receptive field of each unit's output, for each image, in eval mode.

    Differentiates the sum over channels of the output's center; a pixel's gradient is the sum of absolute gradients
    over its channels. It includes the path through the attention weights, by which each pixel has some effect. A field
    ends where the image does.

    Args:
        model: Model with `SelectiveKernel` or `SplitAttention` units; afterwards each module is in its own mode again.
        x: Images [B, in_chans, H, W].

    Returns:
        The side [B] in pixels of the image by the path of each unit, in the order in which they ran; 0 if no pixel has
        an effect.

    Raises:
        ValueError: If the model has no unit with attention.
    """
    model = inner_model(model)
    centers: dict[str, Tensor] = {}

    def record(path: str, unit: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        centers[path] = out[:, :, out.shape[2] // 2, out.shape[3] // 2].float().sum()

    with eval_mode(model), ExitStack() as hooks, torch.inference_mode(False), torch.enable_grad():
        for path, unit in selecting_units(model):
            hooks.enter_context(unit.register_forward_hook(partial(record, path)))
        images = x.detach().clone().requires_grad_()
        model(images)
        return {path: _side(center, images) for path, center in centers.items()}


def _side(center: Tensor, images: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(center, images, retain_graph=True)
    strength = gradient.float().abs().sum(dim=1).flatten(1)  # [B, H * W]
    return (strength > _SHARE * strength.amax(dim=1, keepdim=True)).sum(dim=1).sqrt()
