"""Layouts that store a tensor in parts, or lack biases that our nets have."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .layout import Layout


class PartsLayout(Layout):
    """A layout with tensors in parts along their first dimension, and without biases that our nets have.

    Args:
        name: Name of the layout.
        parts: Name of the list of parts: `convs` for `conv.convs.0.weight` and `conv.convs.1.weight`, which the table
            of names has as `conv.convs.weight`; '' for none.
        counts: Number of parts by name of the module before the list.
        zero_biases: Modules, named as in ours, whose bias is 0 since the other implementation has none. The table must
            drop it on the way back.
        **table: Arguments of `Layout`.
    """

    def __init__(
        self,
        name: str,
        *,
        parts: str = '',
        counts: Mapping[str, int] | None = None,
        zero_biases: tuple[str, ...] = (),
        **table: Any,
    ) -> None:
        super().__init__(name, **table)
        self.parts, self.counts = parts, counts or {}
        self.without_bias = tuple(f'.{module}.weight' for module in zero_biases)

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().to_ours(self._join(state_dict))
        weights = [key for key in ours if self.without_bias and key.endswith(self.without_bias)]
        biases = {f'{key.removesuffix("weight")}bias': ours[key].new_zeros(len(ours[key])) for key in weights}
        return {**ours, **biases}

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._split(super().to_theirs(state_dict))

    def _join(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined: dict[str, dict[int, Tensor]] = {}
        for key, tensor in state_dict.items():
            match = self.parts and re.fullmatch(rf'(.+\.{self.parts})\.([0-9]{{1,3}})(\.\w+)', key)
            name, number = (match[1] + match[3], int(match[2])) if match else (key, 0)
            joined.setdefault(name, {})[number] = tensor
        return {
            key: torch.cat([found[number] for number in sorted(found)])
            if len(found) > 1
            else next(iter(found.values()))
            for key, found in joined.items()
        }

    def _split(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        split: dict[str, Tensor] = {}
        for key, tensor in state_dict.items():
            match = re.fullmatch(rf'(.+\.({"|".join(self.counts)})\.{self.parts})(\.\w+)', key)
            if match is None:
                split[key] = tensor
                continue
            for number, part in enumerate(tensor.chunk(self.counts[match[2]])):
                split[f'{match[1]}.{number}{match[3]}'] = part
        return split
