"""Holocron's SKNet (frgfm/Holocron, holocron/models/classification/sknet.py; one layout at v0.1.3 and v0.2.1)."""

from collections.abc import Mapping

from torch import Tensor

from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout

_LAYOUT = Layout(
    'Holocron SKNet',
    net=[('features.0', 'conv1', WEIGHT), ('features.1', 'bn1', NORM), ('head', 'fc', WEIGHT_AND_BIAS)],
    block=('features.{stage+3}.{block}.', 'layer{stage}.{block}.'),
    modules=[
        ('conv.0', 'conv1.conv', WEIGHT),
        ('conv.1', 'conv1.bn', NORM),
        ('conv.3.path_convs.{path}.0', 'conv2.paths.{path}.conv', WEIGHT),
        ('conv.3.path_convs.{path}.1', 'conv2.paths.{path}.bn', NORM),
        ('conv.3.sa.1', 'conv2.attn.fc_reduce', WEIGHT),
        ('conv.3.sa.2', 'conv2.attn.bn', NORM),
        ('conv.3.sa.4', 'conv2.attn.fc_select', WEIGHT_AND_BIAS),
        ('conv.4', 'conv3.conv', WEIGHT),
        ('conv.5', 'conv3.bn', NORM),
        ('downsample.0', 'downsample.0', WEIGHT),
        ('downsample.1', 'downsample.1', NORM),
    ],
)


def convert_holocron(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From Holocron's `sknet50` to `sknet50_holocron`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)


def to_holocron(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _LAYOUT.to_theirs(state_dict)
