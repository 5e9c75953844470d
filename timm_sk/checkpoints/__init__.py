"""The table of checkpoints: data that imports nothing else of the package.

A row's key is `arch.tag`. A different function is a different architecture; different weights are a different tag; the
same weights from another place are another source. Fields that are not established are None.
"""

from .backbones_resnest import BACKBONE_ROWS
from .imagenet_lsknet import LSKNET_ROWS
from .imagenet_resnest import RESNEST_ROWS
from .imagenet_simclr import SIMCLR_ROWS
from .imagenet_sknet import SKNET_ROWS
from .rows import Checkpoint, Source
from .small import SMALL_ROWS

__all__ = ['CHECKPOINTS', 'Checkpoint', 'Source', 'of_arch', 'of_family']

_ROWS = (*SKNET_ROWS, *SIMCLR_ROWS, *SMALL_ROWS, *RESNEST_ROWS, *LSKNET_ROWS, *BACKBONE_ROWS)
CHECKPOINTS: dict[str, Checkpoint] = {row.name: row for row in _ROWS}


def of_family(family: str) -> list[Checkpoint]:
    """The rows whose architectures a module of `timm_sk.models` builds, in the table's order."""
    return [row for row in CHECKPOINTS.values() if row.family == family]


def of_arch(arch: str) -> list[Checkpoint]:
    """The rows of an architecture, the default first."""
    return [row for row in CHECKPOINTS.values() if row.arch == arch]
