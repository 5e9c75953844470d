"""Single images: the attention of each unit at each scale, channel by channel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..attention import UnitWeights, attention_weights
from ..data import normalizer
from ..inference.deployment import inner_model
from .receptive_field import receptive_fields
from .units import attention_difference, choose_units, expected_kernel_extent, unit_names
from .zoom import SCALES, Zoom

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The attention of U units for P images at S scales.

    Attributes:
        scales: Zoom factors.
        units: Names of all units with attention, in the order in which they ran.
        kernel_extents: Extents of the branches' kernels of each unit, in pixels of the unit's input.
        attention: Weights [P, S, M, C] of the chosen units, by name; of LSKNet maps [P, S, M, H, W].
        differences: `attention_difference`, [P, S, U].
        expected_kernel_extents: `expected_kernel_extent`, [P, S, U].
        receptive_fields: `receptive_fields`, [P, S, U]; None if not measured.
    """

    scales: tuple[float, ...]
    units: tuple[str, ...]
    kernel_extents: tuple[tuple[int, ...], ...]
    attention: dict[str, Floats]
    differences: Floats
    expected_kernel_extents: Floats
    receptive_fields: Floats | None


def explain_images(
    model: nn.Module,
    images: Sequence[Image.Image],
    *,
    scales: Sequence[float] = SCALES,
    units: Sequence[str] | None = None,
    with_receptive_fields: bool = True,
    names: Sequence[str] | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> Explanation:
    """Zoom into images, and record the attention of the units.

    Args:
        model: Model of timm with selection, folded or not, on any device. It runs in eval mode; afterwards each module
            is in its own mode again.
        images: Images of any mode, at least as large as the model's input.
        scales: Zoom factors, at least 1.
        units: Names of the units whose weights are returned; None for those of `default_units`.
        with_receptive_fields: Measure receptive fields, which takes a backward pass for each unit.
        names: Names of the images, for errors.
        batch_size: Inputs in a forward pass; each scale of an image is one.
        on_batch: Called with the number of inputs after each pass.

    Raises:
        ValueError: If the model has no unit with attention, a unit does not exist, a scale is invalid, an image is too
            small, or there are no images.
    """
    model = inner_model(model)
    zoom = Zoom(model, scales)
    chosen = choose_units(unit_names(model), units)
    if not images:
        raise ValueError('No image to explain.')
    for index, image in enumerate(images):
        zoom.require_large_enough(image, names[index] if names else f'image {index + 1}')
    parameter = next(model.parameters())
    prepare = normalizer(zoom.mean, zoom.std, parameter.device)

    recorded: list[list[UnitWeights]] = []
    fields: list[Tensor] = []
    inputs = (pixels for image in images for pixels in zoom(image))
    while batch := list(islice(inputs, batch_size)):
        x = prepare(torch.stack(batch)).to(parameter.dtype)
        recorded.append(attention_weights(model, x))
        if with_receptive_fields:
            sides = receptive_fields(model, x)
            fields.append(torch.stack([sides[unit.path] for unit in recorded[-1]], dim=1))  # [B, U]
        if on_batch:
            on_batch(len(batch))

    def by_image(of_batches: list[Tensor]) -> Floats:
        """From [P * S, ...] to [P, S, ...]."""
        return torch.cat(of_batches).detach().float().cpu().unflatten(0, (len(images), -1)).numpy()

    def of_each_unit(number: Callable[[UnitWeights], Tensor]) -> Floats:
        return by_image([torch.stack([*map(number, units)], dim=1) for units in recorded])

    ran = [unit.name for unit in recorded[0]]
    return Explanation(
        scales=zoom.scales,
        units=tuple(ran),
        kernel_extents=tuple(unit.kernel_extents for unit in recorded[0]),
        attention={name: by_image([units[ran.index(name)].weights for units in recorded]) for name in chosen},
        differences=of_each_unit(attention_difference),
        expected_kernel_extents=of_each_unit(expected_kernel_extent),
        receptive_fields=by_image(fields) if fields else None,
    )
