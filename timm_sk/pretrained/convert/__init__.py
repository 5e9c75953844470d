"""From other implementations' state dicts to ours and back: pure functions, a module per layout.

`convert_*` go to our names, `to_*` back. Both read the same table, in which every key must have a place: a state dict
of another layout is refused with the first key that has none.
"""

from .caffe import convert_caffe, to_caffe
from .gluon import convert_gluon, to_gluon
from .holocron import convert_holocron, to_holocron
from .insight import convert_insight, to_insight
from .lucid import convert_lucid, to_lucid
from .lucid3 import convert_lucid3, convert_lucid3_resnest, to_lucid3, to_lucid3_resnest
from .mindcv import convert_mindcv, convert_mindcv_resnest, to_mindcv, to_mindcv_resnest
from .pytorchcv import convert_pytorchcv, to_pytorchcv
from .recognize import Converter, recognise
from .resnest import convert_resnest

__all__ = [
    'Converter',
    'convert_caffe',
    'convert_gluon',
    'convert_holocron',
    'convert_insight',
    'convert_lucid',
    'convert_lucid3',
    'convert_lucid3_resnest',
    'convert_mindcv',
    'convert_mindcv_resnest',
    'convert_pytorchcv',
    'convert_resnest',
    'recognise',
    'to_caffe',
    'to_gluon',
    'to_holocron',
    'to_insight',
    'to_lucid',
    'to_lucid3',
    'to_lucid3_resnest',
    'to_mindcv',
    'to_mindcv_resnest',
    'to_pytorchcv',
]
