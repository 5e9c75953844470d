"""Whose layout a state dict has."""

from collections.abc import Callable, Mapping

from torch import Tensor

from .caffe import convert_caffe
from .gluon import convert_gluon
from .holocron import convert_holocron
from .insight import convert_insight
from .lucid import convert_lucid
from .lucid3 import convert_lucid3, convert_lucid3_resnest
from .mindcv import convert_mindcv, convert_mindcv_resnest
from .pytorchcv import convert_pytorchcv
from .resnest import convert_resnest

Converter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

# Keys that each net of a layout has together, and of no other layout.
SIGNATURES: dict[tuple[str, ...], Converter] = {
    ('conv2_1/3x3g32:0',): convert_caffe,
    ('layer1.0.conv2.bn.gamma',): convert_gluon,
    ('features.4.0.conv.3.sa.1.weight',): convert_holocron,
    ('layer1.0.conv2g.weight',): convert_insight,
    ('branches.0.weight',): convert_lucid,
    ('layer1.0.sk_module.branches.0.weight',): convert_lucid,
    ('layer1.0.conv2.fc1.conv.weight',): convert_lucid,
    ('classifier.weight', 'layer1.0.conv1.paths.0.conv.weight'): convert_lucid3,
    ('classifier.weight', 'layer1.0.conv2.bn1.weight'): convert_lucid3_resnest,
    ('layer2.0.down_sample.0.weight',): convert_mindcv,
    ('layer1.0.conv2.bn0.gamma',): convert_mindcv_resnest,
    ('features.stage1.unit1.body.conv2.att.conv1.weight',): convert_pytorchcv,
    ('fc.weight', 'layer1.0.conv2.bn1.weight'): convert_resnest,
}


def recognise(state_dict: Mapping[str, Tensor]) -> Converter | None:
    """The converter for a state dict's layout, found by one or two keys; the converter then checks every key.

    Our own ResNeSts have the authors' layout, so `convert_resnest` is the answer for them. Our selective-kernel nets'
    layout is of nobody else: None.

    Returns:
        The converter; None if the layout is none of those that have one.
    """
    return next((converter for keys, converter in SIGNATURES.items() if state_dict.keys() >= {*keys}), None)
