"""The authors' ResNeSt in Gluon (zhanghang1989/ResNeSt, resnest/gluon/), as `Block.save_parameters` names it."""

from collections.abc import Mapping

from torch import Tensor

from .layout import Layout, norm_leaves
from .resnest import BLOCK, resnest_block, resnest_net

_NORM = norm_leaves('.gamma', '.beta', '.running_mean', '.running_var')
_LAYOUT = Layout('Gluon ResNeSt', net=resnest_net(_NORM), block=BLOCK, modules=resnest_block(_NORM, first_norm='bn'))


def convert_gluon(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' Gluon names to ours, of all their nets.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)


def to_gluon(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back; Gluon's norms have no counter of batches.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _LAYOUT.to_theirs(state_dict)
