"""The authors' Caffe nets (implus/SKNet, models/sknet50.prototxt and sknet101.prototxt).

Keys are '<layer>:<blob>'. A CuDNNBatchNorm layer has four blobs of shape (1, C, 1, 1): scale, bias, mean, variance.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .rename import rename

_CONVOLUTIONS = {
    '1x1_reduce': 'conv1.conv',
    '3x3g32': 'conv2.paths.0.conv',
    '3x3g32d2': 'conv2.paths.1.conv',
    'B_fc1': 'conv2.attn.fc_reduce',
    'B_fc2': 'conv2.attn.fc_select',
    '1x1_increase': 'conv3.conv',
    '1x1_proj': 'downsample.0',
}
_NORMS = {
    '1x1_reduce': 'conv1.bn',
    '3x3g32': 'conv2.paths.0.bn',
    '3x3g32d2': 'conv2.paths.1.bn',
    'B_fc1': 'conv2.attn.bn',
    '1x1_increase': 'conv3.bn',
    '1x1_proj': 'downsample.1',
}
_NORM_BLOBS = ('weight', 'bias', 'running_mean', 'running_var')


def _in_block(match: re.Match[str]) -> str:
    stage, block, layer, norm, blob = match.groups()
    module, leaf = (_NORMS[layer], _NORM_BLOBS[int(blob)]) if norm else (_CONVOLUTIONS[layer], 'weight')
    return f'layer{int(stage) - 1}.{int(block) - 1}.{module}.{leaf}'


_RULES = (
    (r'conv1/7x7_s2:0', 'conv1.weight'),
    (r'conv1/7x7_s2/bn:([0-3])', lambda match: f'bn1.{_NORM_BLOBS[int(match[1])]}'),
    (rf'conv([2-5])_(\d+)/({"|".join(_NORMS)})(/bn):([0-3])', _in_block),
    (rf'conv([2-5])_(\d+)/({"|".join(_CONVOLUTIONS)})():(0)', _in_block),
    (r'classifier:0', 'fc.weight'),
    (r'classifier:1', 'fc.bias'),
)


def convert_caffe(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From blobs by '<layer>:<blob>' to `sknet50` or `sknet101`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    flat = {key: tensor.flatten() if '/bn:' in key else tensor for key, tensor in state_dict.items()}
    return rename(flat, _RULES, layout='Caffe SKNet')
