"""Layouts of ResNeSt. The authors' own in PyTorch, zhanghang1989/ResNeSt, is timm's and ours."""

from .layout import (
    BLOCK,
    MINDCV_NORM,
    NORM,
    WEIGHT,
    WEIGHT_AND_BIAS,
    Layout,
    Leaf,
    Leaves,
    Module,
    norm_leaves,
    same_names,
)
from .parts_layout import PartsLayout

_GLUON_NORM = norm_leaves('.gamma', '.beta', '.running_mean', '.running_var')
_PADDLE_NORM = norm_leaves('.weight', '.bias', '._mean', '._variance')
_WITHOUT_BIAS = (*WEIGHT, Leaf(None, '.bias'))


def _stem(norm: Leaves) -> list[Module]:
    """Modules of the stem, named as in ours."""
    return [*same_names(WEIGHT, 'conv1.0', 'conv1.3', 'conv1.6'), *same_names(norm, 'conv1.1', 'conv1.4', 'bn1')]


def resnest_block(norm: Leaves, *, first_norm: str = 'bn0') -> list[Module]:
    """Modules of a block, named as in ours except the norm after the split attention's convolution."""
    return [
        *same_names(WEIGHT, 'conv1', 'conv2.conv', 'conv3', 'downsample.1'),
        *same_names(WEIGHT_AND_BIAS, 'conv2.fc1', 'conv2.fc2'),
        *same_names(norm, 'bn1', 'conv2.bn1', 'bn3', 'downsample.2'),
        (f'conv2.{first_norm}', 'conv2.bn0', norm),
    ]


def _imgclsmob(
    name: str, signature: str, norm: Leaves, *, stem: str, block: str, classifiers: tuple[str, ...]
) -> Layout:
    """osmr/imgclsmob: pytorchcv/models/resnesta.py and gluoncv2/models/resnesta.py."""
    return Layout(
        name,
        signature=(signature,),
        net=[
            *((f'{stem}.conv{number}.conv', f'conv1.{3 * number - 3}', WEIGHT) for number in (1, 2, 3)),
            *((f'{stem}.conv{number}.bn', ours, norm) for number, ours in enumerate(('conv1.1', 'conv1.4', 'bn1'), 1)),
            *((classifier, 'fc', WEIGHT_AND_BIAS) for classifier in classifiers),
        ],
        block=(block, 'layer{stage}.{block}.'),
        modules=[
            ('body.conv1.conv', 'conv1', WEIGHT),
            ('body.conv1.bn', 'bn1', norm),
            ('body.conv2.conv.conv', 'conv2.conv', WEIGHT),
            ('body.conv2.conv.bn', 'conv2.bn0', norm),
            ('body.conv2.att.conv1', 'conv2.fc1', WEIGHT_AND_BIAS),
            ('body.conv2.att.bn', 'conv2.bn1', norm),
            ('body.conv2.att.conv2', 'conv2.fc2', WEIGHT_AND_BIAS),
            ('body.conv3.conv', 'conv3', WEIGHT),
            ('body.conv3.bn', 'bn3', norm),
            ('identity_block.conv.conv', 'downsample.1', WEIGHT),
            ('identity_block.conv.bn', 'downsample.2', norm),
        ],
    )


RESNEST_LAYOUTS = (
    # The authors' nets, zhanghang1989/ResNeSt, resnest/gluon/, as `Block.save_parameters` names them
    Layout(
        'Gluon ResNeSt',
        signature=('layer1.0.conv2.bn.gamma',),
        net=[*_stem(_GLUON_NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=resnest_block(_GLUON_NORM, first_norm='bn'),
    ),
    # mindspore-lab/mindcv, mindcv/models/resnest.py
    Layout(
        'MindCV ResNeSt',
        signature=('layer1.0.conv2.bn0.gamma', 'layer1.0.conv2.conv.weight'),
        archs='.*_mindcv',
        net=[*_stem(MINDCV_NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=resnest_block(MINDCV_NORM),
    ),
    # MindSpore Hub's, mindspore-ai/models, research/cv/ResNeSt50: each group of a convolution is a tensor of its own
    PartsLayout(
        'MindSpore Hub ResNeSt',
        signature=('layer1.0.conv2.bn0.gamma', 'layer1.0.conv2.conv.convs.0.weight'),
        parts='convs',
        counts=dict(conv=2, fc1=1, fc2=1),
        zero_biases=('conv2.fc1', 'conv2.fc2'),
        net=[*_stem(MINDCV_NORM), ('fc', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=[
            *(
                module
                for module in resnest_block(MINDCV_NORM)
                if module[0] not in ('conv2.conv', 'conv2.fc1', 'conv2.fc2')
            ),
            ('conv2.conv.convs', 'conv2.conv', WEIGHT),
            ('conv2.fc1.convs', 'conv2.fc1', _WITHOUT_BIAS),
            ('conv2.fc2.convs', 'conv2.fc2', _WITHOUT_BIAS),
        ],
    ),
    # PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/resnest.py; inputs are a linear layer's first dimension
    PartsLayout(
        'PaddleClas ResNeSt',
        signature=('layer1.layer1_bottleneck_0.conv2.conv3.weight',),
        archs='.*_paddle',
        zero_biases=('conv2.fc1',),
        net=[
            *((f'stem.conv{number}._conv', f'conv1.{3 * number - 3}', WEIGHT) for number in (1, 2, 3)),
            ('stem.conv1._batch_norm', 'conv1.1', _PADDLE_NORM),
            ('stem.conv2._batch_norm', 'conv1.4', _PADDLE_NORM),
            ('stem.conv3._batch_norm', 'bn1', _PADDLE_NORM),
            ('out', 'fc', (Leaf('.weight', '.weight', is_transposed=True), Leaf('.bias', '.bias'))),
        ],
        block=('layer{stage}.layer{stage}_bottleneck_{block}.', 'layer{stage}.{block}.'),
        modules=[
            ('conv1._conv', 'conv1', WEIGHT),
            ('conv1._batch_norm', 'bn1', _PADDLE_NORM),
            ('conv2.conv1._conv', 'conv2.conv', WEIGHT),
            ('conv2.conv1._batch_norm', 'conv2.bn0', _PADDLE_NORM),
            ('conv2.conv2._conv', 'conv2.fc1', _WITHOUT_BIAS),
            ('conv2.conv2._batch_norm', 'conv2.bn1', _PADDLE_NORM),
            ('conv2.conv3', 'conv2.fc2', WEIGHT_AND_BIAS),
            ('conv3._conv', 'conv3', WEIGHT),
            ('conv3._batch_norm', 'bn3', _PADDLE_NORM),
            ('conv4', 'downsample.1', WEIGHT),
            ('_batch_norm', 'downsample.2', _PADDLE_NORM),
        ],
    ),
    _imgclsmob(
        'pytorchcv ResNeSt',
        'features.stage1.unit1.body.conv2.att.conv1.weight',
        NORM,
        stem='features.init_block',
        block='features.stage{stage}.unit{block+1}.',
        classifiers=('output.fc',),
    ),
    _imgclsmob(
        'gluoncv2 ResNeSt',
        'features.1.0.body.conv2.att.conv1.weight',
        _GLUON_NORM,
        stem='features.0',
        block='features.{stage}.{block}.',
        classifiers=('output.1', 'output.2'),  # the latter after a dropout, in resnesta200 and resnesta269
    ),
    # Version 3 of the Lucid library, lucid-dl on the Hugging Face Hub: timm's nets, the classifier renamed
    Layout(
        'Lucid 3 ResNeSt',
        signature=('classifier.weight', 'layer1.0.conv2.bn1.weight'),
        net=[*_stem(NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
        block=BLOCK,
        modules=resnest_block(NORM),
    ),
)
