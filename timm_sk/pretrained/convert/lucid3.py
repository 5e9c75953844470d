"""Version 3 of the Lucid library (lucid-dl on the Hugging Face Hub): timm's nets, stem and classifier renamed."""

from collections.abc import Mapping

from torch import Tensor

from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout
from .resnest import BLOCK, resnest_block, resnest_net

# Modules of the blocks of SK-ResNets, whose unit is `conv1` in a basic block and `conv2` in a bottleneck.
_CONVOLUTIONS = [
    *(f'{name}.conv' for name in ('conv1', 'conv2', 'conv3')),
    *(f'{unit}.{name}' for unit in ('conv1', 'conv2') for name in ('paths.{path}.conv', 'attn.fc_reduce')),
    *(f'{unit}.attn.fc_select' for unit in ('conv1', 'conv2')),
    'downsample.0',
]
_NORMS = [
    *(f'{name}.bn' for name in ('conv1', 'conv2', 'conv3')),
    *(f'{unit}.{name}' for unit in ('conv1', 'conv2') for name in ('paths.{path}.bn', 'attn.bn')),
    'downsample.1',
]

_CLASSIFIER = ('classifier', 'fc', WEIGHT_AND_BIAS)

_SKNET = Layout(
    'Lucid 3 SK-ResNet',
    net=[('stem.0', 'conv1', WEIGHT), ('stem.1', 'bn1', NORM), _CLASSIFIER],
    block=BLOCK,
    modules=[*((name, name, WEIGHT) for name in _CONVOLUTIONS), *((name, name, NORM) for name in _NORMS)],
)
_RESNEST = Layout(
    'Lucid 3 ResNeSt',
    net=[*(module for module in resnest_net(NORM) if module[0] != 'fc'), _CLASSIFIER],
    block=BLOCK,
    modules=resnest_block(NORM),
)


def convert_lucid3(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From version 3's `sk-resnet-18` and `sk-resnet-34` to `skresnet18` and `skresnet34`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _SKNET.to_ours(state_dict)


def to_lucid3(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _SKNET.to_theirs(state_dict)


def convert_lucid3_resnest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From version 3's `resnest-50`, `-101`, `-200` and `-269` to `resnest50d`, `101e`, `200e` and `269e`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _RESNEST.to_ours(state_dict)


def to_lucid3_resnest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _RESNEST.to_theirs(state_dict)
