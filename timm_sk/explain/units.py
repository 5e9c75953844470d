"""Single units: what their weights say in one number, and which of them stand for low, middle and high."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attention import UnitWeights, kind_of, selecting_units, unit_name
from ..inference.deployment import Deployed

_OF_THE_PAPER = ('SK_2_3', 'SK_3_4', 'SK_5_3')


def attention_difference(unit: UnitWeights) -> Tensor:
    """The weight of the branch with the largest kernel minus that of the smallest, averaged over the channels.

    Of several largest kernels the last branch counts, of several smallest ones the first: where all are equal, as in
    split attention, it is the last branch minus the first.

    Returns:
        [B], from -1 to 1; nan where there is one branch, which has nothing to differ from.
    """
    extents = unit.kernel_extents
    if len(extents) == 1:
        return unit.weights.new_full((len(unit.weights),), torch.nan)
    smallest = extents.index(min(extents))
    largest = len(extents) - 1 - extents[::-1].index(max(extents))
    weights = unit.weights.float()
    return (weights[:, largest] - weights[:, smallest]).mean(dim=1)


def expected_kernel_extent(unit: UnitWeights) -> Tensor:
    """The extent of a unit's kernel as the weights mix the branches', averaged over the channels.

    Returns:
        [B], in pixels of the unit's input.
    """
    extents = torch.tensor(unit.kernel_extents, dtype=torch.float32, device=unit.weights.device)
    return torch.einsum('bmc,m->b', unit.weights.float(), extents) / unit.weights.shape[2]


def unit_names(model: nn.Module) -> list[str]:
    """Names of the units of a model that have attention, in the order of its modules.

    Raises:
        ValueError: If there is none.
    """
    return [unit_name(path, kind_of(unit)) for path, unit in selecting_units(model)]


def default_units(names: Sequence[str]) -> tuple[str, ...]:
    """A low, a middle and a high one of a model's units.

    The paper's, SK_2_3, SK_3_4 and SK_5_3, where all of them are there; else the last unit of the first, the middle and
    the last stage that have units, or of as many stages as there are.

    Args:
        names: Of all units, from low to high.
    """
    if set(_OF_THE_PAPER) <= set(names):
        return _OF_THE_PAPER
    last = {_stage(name): name for name in names}  # of each stage
    stages = list(last.values())
    return tuple(dict.fromkeys((stages[0], stages[(len(stages) - 1) // 2], stages[-1])))


def choose_units(names: Sequence[str], wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The units that are asked for, or the default ones.

    Args:
        names: Of all units, from low to high.
        wanted: Some of them; None for the default ones.

    Raises:
        ValueError: If none is asked for, or one that does not exist; names those that do.
    """
    if wanted is None:
        return default_units(names)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        of_them = f'no unit {", ".join(unknown)}' if unknown else 'no unit named'
        raise ValueError(f'There is {of_them}: the model has {", ".join(names)}.')
    return tuple(dict.fromkeys(wanted))


def _stage(name: str) -> str:
    match = re.match(r'S[KA]_\d+', name)
    return match.group() if match else name


def inner_model(model: nn.Module) -> nn.Module:
    """The folded model of what `timm_sk.deploy` gave, whose compiled pass shows no units; else the model itself."""
    return model.model if isinstance(model, Deployed) else model
