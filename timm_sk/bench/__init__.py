"""`timm-sk bench`: our nets beside timm's and the plain backbones, in time and memory, on a CPU or a CUDA GPU.

Nothing is timed before its numbers agree with timm's. `import timm_sk` does not import this package.
"""

from .matrix import Case, Variant, cases
from .results import COLUMNS, Row
from .runner import measure

__all__ = ['COLUMNS', 'Case', 'Row', 'Variant', 'cases', 'measure']
