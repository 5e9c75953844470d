"""The ResNeSts of pytorchcv (osmr/imgclsmob, pytorchcv/models/resnesta.py)."""

from collections.abc import Mapping

from torch import Tensor

from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout

_LAYOUT = Layout(
    'pytorchcv ResNeSt',
    net=[
        ('features.init_block.conv1.conv', 'conv1.0', WEIGHT),
        ('features.init_block.conv1.bn', 'conv1.1', NORM),
        ('features.init_block.conv2.conv', 'conv1.3', WEIGHT),
        ('features.init_block.conv2.bn', 'conv1.4', NORM),
        ('features.init_block.conv3.conv', 'conv1.6', WEIGHT),
        ('features.init_block.conv3.bn', 'bn1', NORM),
        ('output.fc', 'fc', WEIGHT_AND_BIAS),
    ],
    block=('features.stage{stage}.unit{block+1}.', 'layer{stage}.{block}.'),
    modules=[
        ('body.conv1.conv', 'conv1', WEIGHT),
        ('body.conv1.bn', 'bn1', NORM),
        ('body.conv2.conv.conv', 'conv2.conv', WEIGHT),
        ('body.conv2.conv.bn', 'conv2.bn0', NORM),
        ('body.conv2.att.conv1', 'conv2.fc1', WEIGHT_AND_BIAS),
        ('body.conv2.att.bn', 'conv2.bn1', NORM),
        ('body.conv2.att.conv2', 'conv2.fc2', WEIGHT_AND_BIAS),
        ('body.conv3.conv', 'conv3', WEIGHT),
        ('body.conv3.bn', 'bn3', NORM),
        ('identity_block.conv.conv', 'downsample.1', WEIGHT),
        ('identity_block.conv.bn', 'downsample.2', NORM),
    ],
)


def convert_pytorchcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From pytorchcv's `resnesta18` to `resnest18`, and from `resnestabc14`, `resnesta50` and so on to ResNeSts.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)


def to_pytorchcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _LAYOUT.to_theirs(state_dict)
