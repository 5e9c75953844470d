"""The layouts of Lucid 1 and 2: `lucid.nn.SelectiveKernel`, `lucid.models.SKNet` and `lucid.models.ResNeSt`."""

from collections.abc import Mapping

from torch import Tensor

from .layout import WEIGHT, WEIGHT_AND_BIAS, Layout, Leaf, Module, norm_leaves
from .resnest import BLOCK

_NORM = norm_leaves('.weight', '.bias', '.running_mean', '.running_var')
_FC: Module = ('fc', 'fc', (*WEIGHT, Leaf('.bias', '.bias', (1, -1))))
_DOWNSAMPLE: list[Module] = [
    ('downsample.0', 'downsample.0', WEIGHT),
    ('downsample.1', 'downsample.1', _NORM),  # or the convolution's weight, after a pool
    ('downsample.2', 'downsample.2', _NORM),
]
_PLAIN_STEM: list[Module] = [('stem.0', 'conv1', WEIGHT), ('stem.1', 'bn1', _NORM)]
_DEEP_STEM: list[Module] = [  # no norm follows its last convolution
    ('stem.0', 'conv1.0', WEIGHT),
    ('stem.1', 'conv1.1', _NORM),
    ('stem.3', 'conv1.3', WEIGHT),
    ('stem.4', 'conv1.4', _NORM),
    ('stem.6', 'conv1.6', WEIGHT),
]
_SK_UNIT: list[Module] = [
    ('branches.{path}', 'paths.{path}', WEIGHT),
    ('attention.1', 'attn.fc_reduce', WEIGHT),
    ('attention.2', 'attn.bn', _NORM),
    ('attention.4', 'attn.fc_select', WEIGHT),
]
_SK_BLOCK: list[Module] = [
    ('conv1.conv', 'conv1.conv', WEIGHT),
    ('conv1.bn', 'conv1.bn', _NORM),
    *((f'sk_module.{theirs}', f'conv2.{ours}', leaves) for theirs, ours, leaves in _SK_UNIT),
    ('bn2', 'bn2', _NORM),
    ('conv3.0', 'conv3.conv', WEIGHT),
    ('conv3.1', 'conv3.bn', _NORM),
    *_DOWNSAMPLE,
]
_RESNEST_BLOCK: list[Module] = [
    ('conv1.conv', 'conv1', WEIGHT),
    ('conv1.bn', 'bn1', _NORM),
    ('conv2.conv', 'conv2.conv', WEIGHT),
    ('conv2.bn0', 'conv2.bn0', _NORM),
    ('conv2.fc1.conv', 'conv2.fc1', WEIGHT_AND_BIAS),
    ('conv2.fc1.bn', 'conv2.bn1', _NORM),
    ('conv2.fc2', 'conv2.fc2', WEIGHT_AND_BIAS),
    ('conv3', 'conv3', WEIGHT),
    ('bn3', 'bn3', _NORM),
    *_DOWNSAMPLE,
]

_UNIT = Layout('Lucid SelectiveKernel', net=_SK_UNIT)
_SKNET = Layout('Lucid SKNet', net=[*_PLAIN_STEM, _FC], block=BLOCK, modules=_SK_BLOCK)
_DEEP_SKNET = Layout('Lucid SKNet', net=[*_DEEP_STEM, _FC], block=BLOCK, modules=_SK_BLOCK)
_RESNEST = Layout('Lucid ResNeSt', net=[*_DEEP_STEM, _FC], block=BLOCK, modules=_RESNEST_BLOCK)


def convert_lucid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of Lucid's SelectiveKernel, SKNet or ResNeSt to that of `timm_sk.lucid`'s classes.

    Lucid's SKNet has the names of the architectures `sk_resnet_18`, `sk_resnet_34`, `sk_resnet_50` and
    `sk_resnext_50_32x4d`. Its ResNeSt has timm's names, without a `bn1` after the stem and without a pool in the
    downsample. Lucid's `fc.bias` [1, classes] becomes [classes]; no other tensor changes.

    Args:
        state_dict: Lucid's names and tensors.

    Returns:
        The same tensors in the same order, under our names.

    Raises:
        MismatchedCheckpointError: If a name is not of that layout; names it.
    """
    if 'branches.0.weight' in state_dict:
        return _UNIT.to_ours(state_dict)
    if 'layer1.0.conv2.fc1.conv.weight' in state_dict:
        return _RESNEST.to_ours(state_dict)
    return (_DEEP_SKNET if 'stem.6.weight' in state_dict else _SKNET).to_ours(state_dict)


def to_lucid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back; Lucid's norms have no counter of batches, and `fc.bias` becomes [1, classes].

    Raises:
        MismatchedCheckpointError: If a name has no place in that layout; names it.
    """
    if 'paths.0.weight' in state_dict:
        return _UNIT.to_theirs(state_dict)
    if 'layer1.0.conv2.fc1.weight' in state_dict:
        return _RESNEST.to_theirs(state_dict)
    return (_DEEP_SKNET if 'conv1.6.weight' in state_dict else _SKNET).to_theirs(state_dict)
