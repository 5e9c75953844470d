"""What a model says of a picture whose object is enlarged: classes, and the attention of every unit."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import BoundedSemaphore

import torch
from PIL import Image

from ..attention import UnitWeights, record_attention
from ..explain import attention_difference, enlarge
from .models import PageModel

TOPK = 5
LEAST_SCALE, GREATEST_SCALE = 1.0, 3.0

_LEAST_SIDE = 32  # the bundled models' input; a third of it can be enlarged still

_computing = BoundedSemaphore(4)


@dataclass(frozen=True, kw_only=True)
class UnitDifference:
    """The mean attention difference of one unit, largest kernel minus smallest.

    Attributes:
        name: As the paper numbers: SK_2_3.
        unscaled: For the picture as it is.
        scaled: For the enlarged object.
    """

    name: str
    unscaled: float
    scaled: float


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One model's answer.

    Attributes:
        scale: Of the object.
        labels: Of the likeliest classes of the enlarged picture, best first.
        probabilities: Theirs, 0 to 1.
        units: Those with several branches, by depth; none for a model without selection.
        seen: The part of the picture that was left.
    """

    scale: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    units: tuple[UnitDifference, ...]
    seen: Image.Image


def analyse(page_model: PageModel, picture: Image.Image, scale: float) -> Analysis:
    """Run a model on a picture as it is and with its object enlarged.

    Args:
        page_model: The model.
        picture: 8-bit RGB.
        scale: How many times as large the object becomes, `LEAST_SCALE` to `GREATEST_SCALE`.

    Raises:
        ValueError: If the scale is outside of that.
    """
    if not LEAST_SCALE <= scale <= GREATEST_SCALE:
        raise ValueError(f'The scale must be {LEAST_SCALE:g} to {GREATEST_SCALE:g}, got {scale:g}.')
    model, seen = page_model.model, _enlarged(picture, scale)
    mode = 'L' if model.in_chans == 1 else 'RGB'
    x = torch.stack([page_model.transform(view.convert(mode)) for view in (picture, seen)])  # [2, C, H, W]
    parameter = next(model.parameters())
    recording: AbstractContextManager[list[UnitWeights]] = (
        record_attention(model) if page_model.selects else nullcontext([])
    )
    with page_model.lock, _computing, torch.inference_mode(), recording as units:
        logits = model(x.to(parameter.device, parameter.dtype))
    best = logits[1].float().softmax(dim=0).topk(min(TOPK, logits.shape[1]))
    differences = [(unit.name, attention_difference(unit).tolist()) for unit in units if unit.weights.shape[1] > 1]
    return Analysis(
        scale=scale,
        labels=tuple(page_model.class_names[index] for index in best.indices.tolist()),
        probabilities=tuple(best.values.tolist()),
        units=tuple(UnitDifference(name=name, unscaled=first, scaled=last) for name, (first, last) in differences),
        seen=seen,
    )


def _enlarged(picture: Image.Image, scale: float) -> Image.Image:
    """The middle of a picture, of which a few pixels only may be left: then it is made larger first, as for a model."""
    if scale == LEAST_SCALE:
        return picture
    least = min(picture.size)
    if least < _LEAST_SIDE:
        width, height = (round(side * _LEAST_SIDE / least) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return enlarge(picture, scale)
