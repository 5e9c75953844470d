"""The authors' Caffe nets (implus/SKNet, models/sknet50.prototxt and sknet101.prototxt).

Keys are '<layer>:<blob>'. A CuDNNBatchNorm layer has four blobs of shape (1, C, 1, 1): scale, bias, mean, variance.
"""

from collections.abc import Mapping

from torch import Tensor

from .layout import Layout, Leaf, norm_leaves

_WEIGHT = (Leaf(':0', '.weight'),)
_NORM = norm_leaves('/bn:0', '/bn:1', '/bn:2', '/bn:3', shape=(1, -1, 1, 1))
_LAYOUT = Layout(
    'Caffe SKNet',
    net=[
        ('conv1/7x7_s2', 'conv1', _WEIGHT),
        ('conv1/7x7_s2', 'bn1', _NORM),
        ('classifier', 'fc', (*_WEIGHT, Leaf(':1', '.bias'))),
    ],
    block=('conv{stage+1}_{block+1}/', 'layer{stage}.{block}.'),
    modules=[
        ('1x1_reduce', 'conv1.conv', _WEIGHT),
        ('1x1_reduce', 'conv1.bn', _NORM),
        ('3x3g32', 'conv2.paths.0.conv', _WEIGHT),
        ('3x3g32', 'conv2.paths.0.bn', _NORM),
        ('3x3g32d2', 'conv2.paths.1.conv', _WEIGHT),
        ('3x3g32d2', 'conv2.paths.1.bn', _NORM),
        ('B_fc1', 'conv2.attn.fc_reduce', _WEIGHT),
        ('B_fc1', 'conv2.attn.bn', _NORM),
        ('B_fc2', 'conv2.attn.fc_select', _WEIGHT),
        ('1x1_increase', 'conv3.conv', _WEIGHT),
        ('1x1_increase', 'conv3.bn', _NORM),
        ('1x1_proj', 'downsample.0', _WEIGHT),
        ('1x1_proj', 'downsample.1', _NORM),
    ],
)


def convert_caffe(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From blobs by '<layer>:<blob>' to `sknet50` or `sknet101`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)


def to_caffe(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back; Caffe's norms have no counter of batches.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _LAYOUT.to_theirs(state_dict)
