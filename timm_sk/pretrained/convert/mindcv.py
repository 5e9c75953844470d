"""MindCV's SK-ResNets and ResNeSts (mindspore-lab/mindcv, mindcv/models/sknet.py and resnest.py)."""

from collections.abc import Mapping

from torch import Tensor

from .layout import WEIGHT, WEIGHT_AND_BIAS, Layout, norm_leaves
from .resnest import BLOCK, resnest_block, resnest_net

_NORM = norm_leaves('.gamma', '.beta', '.moving_mean', '.moving_variance')

# Basic blocks have the selective-kernel unit as conv1, bottlenecks as conv2.
_SK_RESNET = Layout(
    'MindCV SK-ResNet',
    net=[('conv1', 'conv1', WEIGHT), ('bn1', 'bn1', _NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
    block=BLOCK,
    modules=[
        ('conv{conv}.0', 'conv{conv}.conv', WEIGHT),
        ('conv{conv}.1', 'conv{conv}.bn', _NORM),
        ('conv{conv}.paths.{path}.features.0', 'conv{conv}.paths.{path}.conv', WEIGHT),
        ('conv{conv}.paths.{path}.features.1', 'conv{conv}.paths.{path}.bn', _NORM),
        ('conv{conv}.attn.fc_reduce', 'conv{conv}.attn.fc_reduce', WEIGHT),
        ('conv{conv}.attn.bn', 'conv{conv}.attn.bn', _NORM),
        ('conv{conv}.attn.fc_select', 'conv{conv}.attn.fc_select', WEIGHT),
        ('down_sample.0', 'downsample.0', WEIGHT),
        ('down_sample.1', 'downsample.1', _NORM),
    ],
)
_RESNEST = Layout('MindCV ResNeSt', net=resnest_net(_NORM), block=BLOCK, modules=resnest_block(_NORM))


def convert_mindcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From MindCV's `skresnet18`, `skresnet34`, `skresnet50`, `skresnext50_32x4d` to `*_mindcv`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _SK_RESNET.to_ours(state_dict)


def to_mindcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `convert_mindcv`; MindSpore's norms have no counter of batches.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _SK_RESNET.to_theirs(state_dict)


def convert_mindcv_resnest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From MindCV's `resnest14`, `resnest50`, `resnest101` and so on to our ResNeSts with its pools.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _RESNEST.to_ours(state_dict)


def to_mindcv_resnest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `convert_mindcv_resnest`; MindSpore's norms have no counter of batches.

    Raises:
        MismatchedCheckpointError: If a key has no place in this layout.
    """
    return _RESNEST.to_theirs(state_dict)
