"""Single pictures: what each unit selects as the object grows, channel by channel."""

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
from .receptive_field import receptive_fields
from .units import attention_difference, choose_units, expected_kernel_extent, inner_model, unit_names
from .zoom import SCALES, Enlarging

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What the units selected for P pictures at S scales.

    Attributes:
        scales: How much larger the object was made.
        units: Names of all U units with attention, in the order in which they ran.
        kernel_extents: How far the kernel of each branch reaches, for each unit, in pixels of the unit's input.
        attention: The weights [P, S, M, C] of the chosen units, by name.
        differences: As `attention_difference` has it, [P, S, U].
        expected_kernel_extents: As `expected_kernel_extent` has it, [P, S, U].
        receptive_fields: As `receptive_fields` has it, [P, S, U]; None where they were not asked for.
        input_size: Height and width of the model's input in pixels.
    """

    scales: tuple[float, ...]
    units: tuple[str, ...]
    kernel_extents: tuple[tuple[int, ...], ...]
    attention: dict[str, Floats]
    differences: Floats
    expected_kernel_extents: Floats
    receptive_fields: Floats | None
    input_size: tuple[int, int]


def explain_pictures(
    model: nn.Module,
    pictures: Sequence[Image.Image],
    *,
    scales: Sequence[float] = SCALES,
    units: Sequence[str] | None = None,
    with_receptive_fields: bool = True,
    names: Sequence[str] | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> Explanation:
    """Enlarge the object in each picture and look at what the units select.

    Args:
        model: A model of timm with selection, folded or not, on any device. It runs in eval mode; afterwards each
            module is in the mode that it was in.
        pictures: At least as large as the model's input, of any mode.
        scales: How much larger the object shall be: 1 for the picture as it is, or more.
        units: Names of the units whose channels are kept; None for those of `default_units`.
        with_receptive_fields: Whether to measure them, which takes a backward pass for each unit.
        names: What the pictures are called in an error.
        batch_size: Pictures in a forward pass, each at one scale.
        on_batch: Called with their number after each.

    Raises:
        ValueError: If the model has no unit with attention, a unit does not exist, a scale or a picture is too small or
            too large, or there is no picture.
    """
    model = inner_model(model)
    enlarging = Enlarging(model, scales)
    chosen = choose_units(unit_names(model), units)
    if not pictures:
        raise ValueError('There is no picture to explain.')
    for index, picture in enumerate(pictures):
        enlarging.require_large_enough(picture, names[index] if names else f'picture {index + 1}')
    parameter = next(model.parameters())
    prepare = normalizer(enlarging.mean, enlarging.std, parameter.device)

    found: list[list[UnitWeights]] = []
    fields: list[Tensor] = []
    inputs = (one for picture in pictures for one in enlarging(picture))
    while batch := list(islice(inputs, batch_size)):
        x = prepare(torch.stack(batch)).to(parameter.dtype)
        found.append(attention_weights(model, x))
        if with_receptive_fields:
            sides = receptive_fields(model, x)
            fields.append(torch.stack([sides[unit.path] for unit in found[-1]], dim=1))  # [B, U]
        if on_batch:
            on_batch(len(batch))

    def by_unit(of_units: list[Tensor]) -> Floats:
        return _by_picture(torch.cat(of_units), len(pictures))

    ran = [unit.name for unit in found[0]]
    return Explanation(
        scales=enlarging.scales,
        units=tuple(ran),
        kernel_extents=tuple(unit.kernel_extents for unit in found[0]),
        attention={name: by_unit([units[ran.index(name)].weights for units in found]) for name in chosen},
        differences=by_unit([torch.stack([*map(attention_difference, units)], dim=1) for units in found]),
        expected_kernel_extents=by_unit([torch.stack([*map(expected_kernel_extent, units)], dim=1) for units in found]),
        receptive_fields=by_unit(fields) if fields else None,
        input_size=enlarging.input_size,
    )


def _by_picture(numbers: Tensor, pictures: int) -> Floats:
    """[P * S, ...] as an array [P, S, ...]."""
    return numbers.detach().float().cpu().unflatten(0, (pictures, -1)).numpy()
