"""Layouts of state dicts: one table of names per other implementation, read in both directions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import MismatchedCheckpointError


class Leaf(NamedTuple):
    """A tensor of a module."""

    theirs: str | None  # suffix of its name in the other layout; None if only ours has the tensor: such a bias is 0
    ours: str  # suffix of its name in our layout
    shape: tuple[int, ...] | None = None  # in the other layout, of a tensor that is flat in ours; None if equal
    is_transposed: bool = False  # whether the other layout has the transpose of a matrix
    parts: int = 0  # tensors of the other layout, numbered by `{part}` in `theirs`, that ours has in one; 0 for one


Leaves = Sequence[Leaf]
Module = tuple[str, str, Leaves]  # their name, our name, its tensors


def norm_leaves(
    scale: str,
    shift: str,
    mean: str,
    variance: str,
    counter: str | None = None,
    *,
    shape: tuple[int, ...] | None = None,
) -> Leaves:
    """The tensors of a BatchNorm, by the suffixes of the other layout."""
    return (
        Leaf(scale, '.weight', shape),
        Leaf(shift, '.bias', shape),
        Leaf(mean, '.running_mean', shape),
        Leaf(variance, '.running_var', shape),
        Leaf(counter, '.num_batches_tracked'),
    )


WEIGHT: Leaves = (Leaf('.weight', '.weight'),)
WEIGHT_AND_BIAS: Leaves = (*WEIGHT, Leaf('.bias', '.bias'))
NORM = norm_leaves('.weight', '.bias', '.running_mean', '.running_var', '.num_batches_tracked')
MINDCV_NORM = norm_leaves('.gamma', '.beta', '.moving_mean', '.moving_variance')
_BLOCK = 'layer{stage}.{block}.'


def same_names(leaves: Leaves, *names: str) -> list[Module]:
    """Modules that have the same name in both layouts."""
    return [(name, name, leaves) for name in names]


def rename_modules(ours: Mapping[str, Leaves], theirs: Iterable[str]) -> list[Module]:
    """Modules by their names in our layout, and in the other layout in the same order."""
    return [(name, our, leaves) for (our, leaves), name in zip(ours.items(), theirs, strict=True)]


class Layout:
    """The names of another implementation and ours: a bijection between state dicts that keeps the tensors' order.

    A name may contain numbers: `{stage}` (1 to 4), and `{block}` and any other (from 0). The other layout may count
    them from another number: `features.{stage+3}`.

    Args:
        name: Name of the layout.
        signature: Keys that all state dicts of this layout have and no other layout has.
        archs: Regular expression of the architectures that such state dicts can belong to.
        net: Modules outside the blocks.
        prefix: Prefix of the names in a block; ours is `layer{stage}.{block}.`.
        modules: Modules of a block, without the prefix.
    """

    def __init__(
        self,
        name: str,
        *,
        signature: tuple[str, ...],
        archs: str = '(?!.*_(mindcv|paddle)$).*',
        net: Iterable[Module],
        prefix: str = _BLOCK,
        modules: Iterable[Module] = (),
    ) -> None:
        self.name, self.signature, self.archs = name, signature, archs
        self._to_ours: list[_Rule] = []
        self._to_theirs: list[_Rule] = []
        self._without_bias: list[_Template] = []  # weights of modules that have a bias in ours alone
        in_blocks = ((prefix + theirs, _BLOCK + ours, leaves) for theirs, ours, leaves in modules)
        for their_module, our_module, leaves in (*net, *in_blocks):
            for leaf in leaves:
                ours = _Template(our_module + leaf.ours)
                theirs = None if leaf.theirs is None else _Template(their_module + leaf.theirs)
                self._to_theirs.append(_Rule(ours, theirs, leaf.shape, leaf.is_transposed, leaf.parts))
                if theirs is not None:
                    flat = None if leaf.shape is None else (-1,)
                    self._to_ours.append(_Rule(theirs, ours, flat, leaf.is_transposed, leaf.parts))
                elif leaf.ours == '.bias':
                    self._without_bias.append(_Template(our_module + '.weight'))

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict of this layout to ours.

        Raises:
            MismatchedCheckpointError: If the layout lacks a key, two keys become one, or parts do not fit together.
        """
        ours = _rename(state_dict, self._to_ours, f'is not a key of the layout {self.name}.')
        for key in [key for key in ours if any(weight.read(key) is not None for weight in self._without_bias)]:
            ours[key.removesuffix('weight') + 'bias'] = ours[key].new_zeros(ours[key].shape[:1])
        return ours

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `to_ours`; tensors that this layout lacks (`num_batches_tracked`) are dropped."""
        return _rename(state_dict, self._to_theirs, f'has no counterpart in the layout {self.name}.')


class _Template:
    """A name with numbers; `{stage+3}` is the stage's number plus three."""

    _FIELD = re.compile(r'\{(\w+)([+-]\d+)?\}')

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields = [(field, int(offset or 0)) for field, offset in self._FIELD.findall(text)]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Compiled on first use: compiling all patterns would take half of the package's import time."""
        literals = self._FIELD.split(self._text)[::3]  # a field and its offset follow each
        return re.compile('(0|[1-9][0-9]{0,3})'.join(map(re.escape, literals)))

    def read(self, name: str) -> dict[str, int] | None:
        """The numbers in a name; None if the name does not match."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        written = zip(self._fields, match.groups(), strict=True)
        numbers = {field: int(digits) - offset for (field, offset), digits in written}
        in_range = numbers.get('stage', 1) in range(1, 5) and min(numbers.values(), default=0) >= 0
        return numbers if in_range and self.write(numbers) == name else None  # a field's numbers agree

    def write(self, numbers: Mapping[str, int]) -> str:
        return self._FIELD.sub(lambda field: str(numbers[field[1]] + int(field[2] or 0)), self._text)


class _Rule(NamedTuple):
    source: _Template
    target: _Template | None  # None if the tensor is dropped
    shape: tuple[int, ...] | None  # None if it stays
    is_transposed: bool
    parts: int


def _rename(state_dict: Mapping[str, Tensor], rules: Sequence[_Rule], complaint: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}  # of one tensor, by name and number
    for key, tensor in state_dict.items():
        found = ((rule, numbers) for rule in rules if (numbers := rule.source.read(key)) is not None)
        rule, numbers = next(found, (None, {}))
        if rule is None:
            raise MismatchedCheckpointError(f'"{key}" {complaint}')
        if rule.target is None:
            continue
        if rule.parts and 'part' not in numbers:
            chunks = enumerate(tensor.chunk(rule.parts))
            renamed |= {rule.target.write({**numbers, 'part': part}): chunk for part, chunk in chunks}
            continue
        name = rule.target.write(numbers)
        if rule.parts:
            parts.setdefault(name, {})[numbers['part']] = tensor
            continue
        if name in renamed:
            raise MismatchedCheckpointError(
                f'Two keys become "{name}", one of them "{key}": keep the one that belongs to the net.'
            )
        if rule.is_transposed and tensor.dim() == 2:
            tensor = tensor.t()
        renamed[name] = tensor if rule.shape is None else tensor.reshape(rule.shape)
    for name, numbered in parts.items():
        tensors = [numbered[part] for part in sorted(numbered)]
        if len({tensor.shape for tensor in tensors}) > 1 or not tensors[0].dim():
            raise MismatchedCheckpointError(f'The parts of "{name}" do not fit together.')
        renamed[name] = torch.cat(tensors)
    return renamed
