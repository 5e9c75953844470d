"""What the selection does as an object grows: section 5 of the SKNet paper (arXiv:1903.06586) as functions.

They return numbers; `timm-sk explain` draws them. docs/attention.md says how to read them.
"""

from .bootstrap import Estimate
from .explanations import Explanation, explain_pictures
from .receptive_field import receptive_fields
from .scale_study import Study, study
from .units import attention_difference, choose_units, default_units, expected_kernel_extent
from .zoom import Enlarging, enlarge

__all__ = [
    'Enlarging',
    'Estimate',
    'Explanation',
    'Study',
    'attention_difference',
    'choose_units',
    'default_units',
    'enlarge',
    'expected_kernel_extent',
    'explain_pictures',
    'receptive_fields',
    'study',
]
