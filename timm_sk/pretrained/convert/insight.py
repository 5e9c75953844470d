"""PytorchInsight's SK-ResNets (implus/PytorchInsight, classification/models/imagenet/resnet_sk.py)."""

import re
from collections.abc import Mapping

from torch import Tensor

from .rename import rename

_MODULES = {
    'conv1': 'conv1.conv',
    'bn1': 'conv1.bn',
    'conv2': 'conv2.paths.0.conv',
    'bn2': 'conv2.paths.0.bn',
    'conv2g': 'conv2.paths.1.conv',
    'bn2g': 'conv2.paths.1.bn',
    'conv_fc1': 'conv2.attn.fc_reduce',
    'bn_fc1': 'conv2.attn.bn',
    'conv_fc2': 'conv2.attn.fc_select',
    'conv3': 'conv3.conv',
    'bn3': 'conv3.bn',
    'downsample.0': 'downsample.0',
    'downsample.1': 'downsample.1',
}

_RULES = (
    (r'(conv1|bn1|fc)\.(\w+)', r'\1.\2'),
    (
        rf'(layer[1-4]\.\d+)\.({"|".join(map(re.escape, _MODULES))})\.(\w+)',
        lambda match: f'{match[1]}.{_MODULES[match[2]]}.{match[3]}',
    ),
)


def convert_insight(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From PytorchInsight's `sk_resnet50` and `sk_resnet101` to `skresnet50_insight` and `skresnet101_insight`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return rename(state_dict, _RULES, layout='PytorchInsight SK-ResNet')
