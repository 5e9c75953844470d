"""Layouts of Lucid 1 and 2: `lucid.nn.SelectiveKernel`, `lucid.models.SKNet` and `lucid.models.ResNeSt`.

Converted, they are the state dicts of the classes in `timm_sk.lucid`: Lucid's SKNets have our names of `sk_resnet_18`,
`sk_resnet_34`, `sk_resnet_50` and `sk_resnext_50_32x4d`; its ResNeSts have timm's names, without a `bn1` after the stem
and without a pool in the downsample. `fc.bias` has shape [1, classes].
"""

from .layout import WEIGHT, WEIGHT_AND_BIAS, Layout, Leaf, Module, norm_leaves

_NORM = norm_leaves('.weight', '.bias', '.running_mean', '.running_var')
_FC: Module = ('fc', 'fc', (*WEIGHT, Leaf('.bias', '.bias', (1, -1))))
_DOWNSAMPLE: list[Module] = [
    ('downsample.0', 'downsample.0', WEIGHT),
    ('downsample.1', 'downsample.1', _NORM),  # or the convolution's weight, after a pool
    ('downsample.2', 'downsample.2', _NORM),
]
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

LUCID_LAYOUTS = (
    Layout('Lucid SelectiveKernel', signature=('branches.0.weight',), net=_SK_UNIT),
    Layout(
        'Lucid SKNet',
        signature=('layer1.0.sk_module.branches.0.weight',),
        net=[('stem.0', 'conv1', WEIGHT), ('stem.1', 'bn1', _NORM), _FC],
        modules=_SK_BLOCK,
    ),
    Layout(
        'Lucid SKNet with a deep stem',
        signature=('layer1.0.sk_module.branches.0.weight', 'stem.6.weight'),
        net=[*_DEEP_STEM, _FC],
        modules=_SK_BLOCK,
    ),
    Layout(
        'Lucid ResNeSt', signature=('layer1.0.conv2.fc1.conv.weight',), net=[*_DEEP_STEM, _FC], modules=_RESNEST_BLOCK
    ),
)
