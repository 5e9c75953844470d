"""Layouts of ResNeSt. The authors' own in PyTorch, zhanghang1989/ResNeSt, is timm's and ours."""

from .layout import BLOCK, MINDCV_NORM, NORM, WEIGHT, WEIGHT_AND_BIAS, Layout, Leaves, Module, norm_leaves, same_names

_GLUON_NORM = norm_leaves('.gamma', '.beta', '.running_mean', '.running_var')


def _stem(norm: Leaves) -> list[Module]:
    """Modules of the stem, named as in ours."""
    return [*same_names(WEIGHT, 'conv1.0', 'conv1.3', 'conv1.6'), *same_names(norm, 'conv1.1', 'conv1.4', 'bn1')]


def _block(norm: Leaves, *, first_norm: str = 'bn0') -> list[Module]:
    """Modules of a block, named as in ours except the norm after the split attention's convolution."""
    return [
        *same_names(WEIGHT, 'conv1', 'conv2.conv', 'conv3', 'downsample.1'),
        *same_names(WEIGHT_AND_BIAS, 'conv2.fc1', 'conv2.fc2'),
        *same_names(norm, 'bn1', 'conv2.bn1', 'bn3', 'downsample.2'),
        (f'conv2.{first_norm}', 'conv2.bn0', norm),
    ]


RESNEST_LAYOUTS = (
    # The authors' nets, zhanghang1989/ResNeSt, resnest/gluon/, as `Block.save_parameters` names them
    Layout(
        'Gluon ResNeSt',
        signature=('layer1.0.conv2.bn.gamma',),
        net=[*_stem(_GLUON_NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=_block(_GLUON_NORM, first_norm='bn'),
    ),
    # mindspore-lab/mindcv, mindcv/models/resnest.py
    Layout(
        'MindCV ResNeSt',
        signature=('layer1.0.conv2.bn0.gamma',),
        archs='.*_mindcv',
        net=[*_stem(MINDCV_NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=_block(MINDCV_NORM),
    ),
    # osmr/imgclsmob, pytorchcv/models/resnesta.py
    Layout(
        'pytorchcv ResNeSt',
        signature=('features.stage1.unit1.body.conv2.att.conv1.weight',),
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
    ),
    # Version 3 of the Lucid library, lucid-dl on the Hugging Face Hub: timm's nets, the classifier renamed
    Layout(
        'Lucid 3 ResNeSt',
        signature=('classifier.weight', 'layer1.0.conv2.bn1.weight'),
        net=[*_stem(NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=_block(NORM),
    ),
)
