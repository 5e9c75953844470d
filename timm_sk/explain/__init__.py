"""What the selection does as an object grows: section 5 of the SKNet paper (arXiv:1903.06586).

These functions return numbers; `timm-sk explain` draws them, and docs/attention.md says how to read them.
"""

from .explanations import Explanation, explain_images
from .intervals import Estimate
from .receptive_field import receptive_fields
from .scale_study import Study, study
from .units import (
    attention_difference,
    choose_units,
    contribution_difference,
    default_units,
    expected_kernel_extent,
)
from .zoom import Zoom, zoom_in

__all__ = [
    'Estimate',
    'Explanation',
    'Study',
    'Zoom',
    'attention_difference',
    'choose_units',
    'contribution_difference',
    'default_units',
    'expected_kernel_extent',
    'explain_images',
    'receptive_fields',
    'study',
    'zoom_in',
]
