"""`timm-sk bench`: time and memory of our models beside timm's and the plain backbones, on a CPU or a CUDA GPU.

Only models whose outputs match timm's are timed. `import timm_sk` does not import this package.
"""

from .matrix import Case, Variant, cases
from .results import COLUMNS, Row
from .runner import measure

__all__ = ['COLUMNS', 'Case', 'Row', 'Variant', 'cases', 'measure']
