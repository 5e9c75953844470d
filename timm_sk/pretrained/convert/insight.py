"""PytorchInsight's SK-ResNets (implus/PytorchInsight, classification/models/imagenet/resnet_sk.py)."""

from collections.abc import Mapping

from torch import Tensor

from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout

_LAYOUT = Layout(
    'PytorchInsight SK-ResNet',
    net=[('conv1', 'conv1', WEIGHT), ('bn1', 'bn1', NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
    block=('layer{stage}.{block}.', 'layer{stage}.{block}.'),
    modules=[
        ('conv1', 'conv1.conv', WEIGHT),
        ('bn1', 'conv1.bn', NORM),
        ('conv2', 'conv2.paths.0.conv', WEIGHT),
        ('bn2', 'conv2.paths.0.bn', NORM),
        ('conv2g', 'conv2.paths.1.conv', WEIGHT),
        ('bn2g', 'conv2.paths.1.bn', NORM),
        ('conv_fc1', 'conv2.attn.fc_reduce', WEIGHT),
        ('bn_fc1', 'conv2.attn.bn', NORM),
        ('conv_fc2', 'conv2.attn.fc_select', WEIGHT),
        ('conv3', 'conv3.conv', WEIGHT),
        ('bn3', 'conv3.bn', NORM),
        ('downsample.0', 'downsample.0', WEIGHT),
        ('downsample.1', 'downsample.1', NORM),
    ],
)


def convert_insight(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From PytorchInsight's `sk_resnet50` and `sk_resnet101` to `skresnet50_insight` and `skresnet101_insight`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)


def to_insight(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _LAYOUT.to_theirs(state_dict)
