"""Numbers of single units, and the choice of a low, a middle and a high one."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attention import UnitWeights, selecting_units, unit_name

_OF_THE_PAPER = ('SK_2_3', 'SK_3_4', 'SK_5_3')


def largest_kernel(extents: Sequence[int]) -> int:
    """The branch of the largest kernel; of several the last."""
    return max(range(len(extents)), key=lambda branch: (extents[branch], branch))


def attention_difference(unit: UnitWeights) -> Tensor:
    """The weight of the branch with the largest kernel minus that of the smallest, averaged over channels or positions.

    Of several largest kernels the last branch counts, of several smallest ones the first: if all are equal, as in split
    attention, it is the last branch minus the first.

    Returns:
        [B], from -1 to 1; nan if there is one branch.
    """
    extents = unit.kernel_extents
    if len(extents) == 1:
        return unit.weights.new_full((len(unit.weights),), torch.nan)
    weights = unit.weights.float()
    return (weights[:, largest_kernel(extents)] - weights[:, extents.index(min(extents))]).flatten(1).mean(dim=1)


def contribution_difference(unit: UnitWeights) -> Tensor:
    """Where the branch with the largest kernel contributes more than the one with the smallest, and where less.

    The difference of their contributions over the sum of both; 0 where both are 0. The branches are chosen as for
    `attention_difference`.

    Args:
        unit: Unit with several branches, recorded with `record_attention(..., contributions=True)`.

    Returns:
        [B, H, W], from -1 to 1.

    Raises:
        ValueError: If the contributions were not recorded.
    """
    if unit.contributions is None:
        raise ValueError(f'{unit.name} has no contributions: record them with record_attention(contributions=True).')
    extents = unit.kernel_extents
    largest, smallest = (unit.contributions[:, m] for m in (largest_kernel(extents), extents.index(min(extents))))
    return (largest - smallest) / (largest + smallest).clamp_min(torch.finfo(largest.dtype).tiny)


def expected_kernel_extent(unit: UnitWeights) -> Tensor:
    """The mean of the branches' kernel extents by their weights, averaged over channels or positions.

    Returns:
        [B], in pixels of the unit's input.
    """
    extents = torch.tensor(unit.kernel_extents, dtype=torch.float32, device=unit.weights.device)
    weights = unit.weights.float()
    if weights.dim() == 4:  # maps, which need not sum to 1
        weights = (weights / weights.sum(dim=1, keepdim=True)).flatten(2)
    return torch.einsum('bmc,m->b', weights, extents) / weights.shape[2]


def unit_names(model: nn.Module) -> list[str]:
    """Names of a model's units with attention, in the order of its modules; raises ValueError if there is none."""
    return [unit_name(path, unit) for path, unit in selecting_units(model)]


def default_units(names: Sequence[str]) -> tuple[str, ...]:
    """A low, a middle and a high one of a model's units.

    The paper's, SK_2_3, SK_3_4 and SK_5_3, if the model has them; else the last unit of the first, the middle and the
    last stage that have units, without repetition.

    Args:
        names: Names of all units, from low to high.
    """
    if set(_OF_THE_PAPER) <= set(names):
        return _OF_THE_PAPER
    stages = list({_stage(name): name for name in names}.values())  # the last unit of each
    return tuple(dict.fromkeys((stages[0], stages[(len(stages) - 1) // 2], stages[-1])))


def choose_units(names: Sequence[str], wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The wanted units, each once, or the default ones.

    Args:
        names: Names of all units, from low to high.
        wanted: Some of the names; None for the default ones.

    Raises:
        ValueError: If `wanted` is empty or has an unknown name.
    """
    if wanted is None:
        return default_units(names)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        problem = f'Unknown unit {", ".join(unknown)}' if unknown else 'No unit given'
        raise ValueError(f'{problem}: the model has {", ".join(names)}.')
    return tuple(dict.fromkeys(wanted))


def _stage(name: str) -> str:
    match = re.match(r'(?:SK|SA|LSK)_\d+', name)
    return match.group() if match else name
