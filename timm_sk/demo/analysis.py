"""A model's classes and the attention of every unit for an image whose object is enlarged."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import BoundedSemaphore

import torch
from PIL import Image
from torch import Tensor

from ..attention import UnitWeights, record_attention
from ..explain import attention_difference, contribution_difference, zoom_in
from .model_cache import PageModel

TOPK = 5
MIN_SCALE, MAX_SCALE = 1.0, 3.0

_MIN_SIDE = 32  # the input size of the bundled models; a third of it can still be enlarged

_computing = BoundedSemaphore(4)


@dataclass(frozen=True, kw_only=True)
class UnitDifference:
    """What one unit prefers: its largest kernel minus its smallest."""

    name: str  # as in the paper, such as SK_2_3
    unscaled: float  # mean attention difference for the image as it is
    scaled: float  # the same for the enlarged object
    map: Tensor  # `contribution_difference` for the enlarged object, [H, W] from -1 to 1
    one_size: bool = False  # whether all kernels have one size; it is then the last branch minus the first


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A model's answer."""

    scale: float  # magnification of the object, `MIN_SCALE` to `MAX_SCALE`
    labels: tuple[str, ...]  # likeliest classes of the enlarged image, best first
    probabilities: tuple[float, ...]  # of these classes, 0 to 1
    units: tuple[UnitDifference, ...]  # those with several branches, by depth; empty for a model without selection
    seen: Image.Image  # the model's input, with the object enlarged, as 8-bit RGB or greys


def analyse(page_model: PageModel, image: Image.Image, scale: float) -> Analysis:
    """Run a model on an image as it is and with its object enlarged; raises ValueError if the scale is out of range."""
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(f'The scale must be {MIN_SCALE:g} to {MAX_SCALE:g}, got {scale:g}.')
    model = page_model.model
    x = torch.stack([*map(page_model.transform, (image, _enlarged(image, scale)))])  # [2, C, H, W]
    parameter = next(model.parameters())
    units: list[UnitWeights] = []
    with page_model.lock, _computing, torch.inference_mode(), ExitStack() as stack:
        with suppress(ValueError):  # of a model without selection
            units = stack.enter_context(record_attention(model, contributions=True))
        logits = model(x.to(parameter.device, parameter.dtype))
    best = logits[1].float().softmax(dim=0).topk(min(TOPK, logits.shape[1]))
    return Analysis(
        scale=scale,
        labels=tuple(page_model.class_names[index] for index in best.indices.tolist()),
        probabilities=tuple(best.values.tolist()),
        units=tuple(_difference(unit) for unit in units if unit.weights.shape[1] > 1),
        seen=page_model.as_image(x[1]),
    )


def _difference(unit: UnitWeights) -> UnitDifference:
    unscaled, scaled = attention_difference(unit).tolist()
    one_size = len(set(unit.kernel_extents)) == 1
    maps = contribution_difference(unit).cpu()
    return UnitDifference(name=unit.name, unscaled=unscaled, scaled=scaled, map=maps[1], one_size=one_size)


def _enlarged(image: Image.Image, scale: float) -> Image.Image:
    """Enlarge the object of an image; a small image is first resized, so that enough pixels are left."""
    if scale == MIN_SCALE:
        return image
    shorter = min(image.size)
    if shorter < _MIN_SIDE:
        width, height = (round(side * _MIN_SIDE / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return zoom_in(image, scale)
