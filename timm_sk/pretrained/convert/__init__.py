"""State dicts of other implementations: their layouts, each a table of names that is read in both directions."""

from collections.abc import Mapping

from .layout import Layout
from .lucid_layouts import LUCID_LAYOUTS
from .resnest_layouts import RESNEST_LAYOUTS, take_backbone
from .simclr_layouts import SIMCLR_LAYOUTS, convert_simclr_head, is_simclr_variable
from .sknet_layouts import SKNET_LAYOUTS

__all__ = ['LAYOUTS', 'Layout', 'convert_simclr_head', 'is_simclr_variable', 'recognize', 'take_backbone']

LAYOUTS = {layout.name: layout for layout in (*SKNET_LAYOUTS, *SIMCLR_LAYOUTS, *RESNEST_LAYOUTS, *LUCID_LAYOUTS)}


def recognize(state_dict: Mapping[str, object]) -> Layout | None:
    """The layout of a state dict, by a signature of its keys; converting then checks every key.

    Returns:
        The layout; None for our own, which the authors' ResNeSts in PyTorch share, and for unknown ones.
    """
    found = [layout for layout in LAYOUTS.values() if state_dict.keys() >= {*layout.signature}]
    return max(found, key=lambda layout: len(layout.signature), default=None)
