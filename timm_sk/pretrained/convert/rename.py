"""Renaming a state dict by an exact map."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ...errors import MismatchedCheckpointError

# A pattern for the whole key, and what it becomes: a template as of `re.sub`, or a function of the match.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def rename(state_dict: Mapping[str, Tensor], rules: Sequence[Rule], *, layout: str) -> dict[str, Tensor]:
    """Rename every key by the first rule that matches the whole of it.

    Args:
        state_dict: Tensors by upstream's names.
        rules: The map.
        layout: Name of upstream's layout, for the error.

    Raises:
        MismatchedCheckpointError: If a key has no rule, or two become one.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        match = next((match for pattern, _ in rules if (match := re.fullmatch(pattern, key))), None)
        if match is None:
            raise MismatchedCheckpointError(
                f'"{key}" is no key of a {layout} state dict. Name the layout it comes from.'
            )
        replacement = dict(rules)[match.re.pattern]
        name = replacement(match) if callable(replacement) else match.expand(replacement)
        if name in renamed:
            raise MismatchedCheckpointError(
                f'Two keys of this {layout} state dict become "{name}", one of them "{key}".'
            )
        renamed[name] = tensor
    return renamed
