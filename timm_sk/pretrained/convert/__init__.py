"""From other implementations' state dicts to ours: pure functions from state dict to state dict, a module per layout.

A state dict of another layout is refused with the first key that has no place.
"""

from .caffe import convert_caffe
from .holocron import convert_holocron
from .insight import convert_insight
from .lucid import convert_lucid
from .mindcv import convert_mindcv

__all__ = ['convert_caffe', 'convert_holocron', 'convert_insight', 'convert_lucid', 'convert_mindcv']
