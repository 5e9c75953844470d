"""Layouts of ResNeSt, and of its backbones in detectors and segmenters.

The authors' own layout in PyTorch, zhanghang1989/ResNeSt, is timm's and ours.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from .layout import (
    MINDCV_NORM,
    NORM,
    WEIGHT,
    WEIGHT_AND_BIAS,
    Layout,
    Leaf,
    Leaves,
    Module,
    norm_leaves,
    rename_modules,
)

_GLUON_NORM = norm_leaves('.gamma', '.beta', '.running_mean', '.running_var')
_PADDLE_NORM = norm_leaves('.weight', '.bias', '._mean', '._variance')
_WITHOUT_BIAS = (*WEIGHT, Leaf(None, '.bias'))

# Our modules, in the order in which the layouts below list theirs.
_STEM = {'conv1.0': WEIGHT, 'conv1.1': NORM, 'conv1.3': WEIGHT, 'conv1.4': NORM, 'conv1.6': WEIGHT, 'bn1': NORM}
_BLOCK = {
    'conv1': WEIGHT,
    'bn1': NORM,
    'conv2.conv': WEIGHT,
    'conv2.bn0': NORM,
    'conv2.fc1': WEIGHT_AND_BIAS,
    'conv2.bn1': NORM,
    'conv2.fc2': WEIGHT_AND_BIAS,
    'conv3': WEIGHT,
    'bn3': NORM,
    'downsample.1': WEIGHT,
    'downsample.2': NORM,
}
_PREFIXES = ('backbone.bottom_up.', 'backbone.', 'pretrained.')  # Detectron2's FPN, OpenMMLab, PyTorch-Encoding


def _resnest(
    name: str,
    *signature: str,
    norm: Leaves = NORM,
    stem: Sequence[str] = tuple(_STEM),
    block: Sequence[str] = tuple(_BLOCK),
    leaves: dict[str, Leaves] | None = None,
    others: Sequence[Module] = (('fc', 'fc', WEIGHT_AND_BIAS),),
    **layout: str,
) -> Layout:
    """A layout by its names of `_STEM` and `_BLOCK`; `leaves` are those of modules with other tensors than ours."""
    modules = rename_modules(_STEM, stem), rename_modules(_BLOCK | (leaves or {}), block)
    net, in_block = ([(theirs, ours, norm if kind is NORM else kind) for theirs, ours, kind in m] for m in modules)
    return Layout(name, signature=signature, net=[*others, *net], modules=in_block, **layout)


_IMGCLSMOB_STEM = 'conv1.conv', 'conv1.bn', 'conv2.conv', 'conv2.bn', 'conv3.conv', 'conv3.bn'
_IMGCLSMOB_BLOCK = (
    *('body.conv1.conv', 'body.conv1.bn', 'body.conv2.conv.conv', 'body.conv2.conv.bn'),
    *('body.conv2.att.conv1', 'body.conv2.att.bn', 'body.conv2.att.conv2', 'body.conv3.conv', 'body.conv3.bn'),
    *('identity_block.conv.conv', 'identity_block.conv.bn'),
)

RESNEST_LAYOUTS = (
    # The authors' nets, zhanghang1989/ResNeSt, resnest/gluon/, as `Block.save_parameters` names them
    _resnest(
        'Gluon ResNeSt',
        'layer1.0.conv2.bn.gamma',
        norm=_GLUON_NORM,
        block=[name.replace('bn0', 'bn') for name in _BLOCK],
    ),
    # mindspore-lab/mindcv, mindcv/models/resnest.py
    _resnest(
        'MindCV ResNeSt', 'layer1.0.conv2.bn0.gamma', 'layer1.0.conv2.conv.weight', norm=MINDCV_NORM, archs='.*_mindcv'
    ),
    # MindSpore Hub's, mindspore-ai/models, research/cv/ResNeSt50: each group of a convolution is a tensor of its own
    _resnest(
        'MindSpore Hub ResNeSt',
        'layer1.0.conv2.bn0.gamma',
        'layer1.0.conv2.conv.convs.0.weight',
        norm=MINDCV_NORM,
        leaves={
            'conv2.conv': (Leaf('.convs.{part}.weight', '.weight', parts=2),),
            'conv2.fc1': (Leaf('.convs.0.weight', '.weight'), Leaf(None, '.bias')),
            'conv2.fc2': (Leaf('.convs.0.weight', '.weight'), Leaf(None, '.bias')),
        },
    ),
    # PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/resnest.py; inputs are a linear layer's first dimension
    _resnest(
        'PaddleClas ResNeSt',
        'layer1.layer1_bottleneck_0.conv2.conv3.weight',
        archs='.*_paddle',
        norm=_PADDLE_NORM,
        stem=[f'stem.conv{number}.{part}' for number in (1, 2, 3) for part in ('_conv', '_batch_norm')],
        prefix='layer{stage}.layer{stage}_bottleneck_{block}.',
        block=(
            *('conv1._conv', 'conv1._batch_norm', 'conv2.conv1._conv', 'conv2.conv1._batch_norm'),
            *('conv2.conv2._conv', 'conv2.conv2._batch_norm', 'conv2.conv3', 'conv3._conv', 'conv3._batch_norm'),
            *('conv4', '_batch_norm'),
        ),
        leaves={'conv2.fc1': _WITHOUT_BIAS},
        others=[('out', 'fc', (Leaf('.weight', '.weight', is_transposed=True), Leaf('.bias', '.bias')))],
    ),
    # osmr/imgclsmob, pytorchcv/models/resnesta.py and gluoncv2/models/resnesta.py
    _resnest(
        'pytorchcv ResNeSt',
        'features.stage1.unit1.body.conv2.att.conv1.weight',
        stem=[f'features.init_block.{name}' for name in _IMGCLSMOB_STEM],
        prefix='features.stage{stage}.unit{block+1}.',
        block=_IMGCLSMOB_BLOCK,
        others=[('output.fc', 'fc', WEIGHT_AND_BIAS)],
    ),
    _resnest(
        'gluoncv2 ResNeSt',
        'features.1.0.body.conv2.att.conv1.weight',
        norm=_GLUON_NORM,
        stem=[f'features.0.{name}' for name in _IMGCLSMOB_STEM],
        prefix='features.{stage}.{block}.',
        block=_IMGCLSMOB_BLOCK,
        others=[(f'output.{number}', 'fc', WEIGHT_AND_BIAS) for number in (1, 2)],  # 2 behind a dropout, in the largest
    ),
    # Version 3 of the Lucid library, lucid-dl on the Hugging Face Hub: timm's nets, the classifier renamed
    _resnest(
        'Lucid 3 ResNeSt',
        'classifier.weight',
        'layer1.0.conv2.bn1.weight',
        others=[('classifier', 'fc', WEIGHT_AND_BIAS)],
    ),
    # The authors' backbones for Detectron2, zhanghang1989/ResNeSt, resnest/d2/resnest.py: convolutions contain norms
    _resnest(
        'Detectron2 ResNeSt',
        'res2.0.conv2.fc1.weight',
        stem=[f'stem.conv1_{number}{norm}' for number in (1, 2, 3) for norm in ('', '.norm')],
        prefix='res{stage+1}.{block}.',
        block=(
            *('conv1', 'conv1.norm', 'conv2.conv', 'conv2.bn0', 'conv2.fc1', 'conv2.bn1', 'conv2.fc2'),
            *('conv3', 'conv3.norm', 'shortcut', 'shortcut.norm'),
        ),
        others=(),
    ),
    # open-mmlab/mmdetection and mmsegmentation, models/backbones/resnest.py
    _resnest(
        'mmdetection ResNeSt',
        'stem.7.weight',
        'layer1.0.conv2.fc1.weight',
        stem=[f'stem.{number}' for number in (0, 1, 3, 4, 6, 7)],
        others=(),
    ),
    # open-mmlab/mmpretrain, models/backbones/resnest.py, which leaves out the pool of the first shortcut
    _resnest(
        'mmpretrain ResNeSt',
        'stem.2.bn.weight',
        'layer1.0.conv2.fc1.weight',
        stem=[f'stem.{number}.{part}' for number in (0, 1, 2) for part in ('conv', 'bn')],
        others=[
            ('layer1.0.downsample.0', 'layer1.0.downsample.1', WEIGHT),
            ('layer1.0.downsample.1', 'layer1.0.downsample.2', NORM),
            ('head.fc', 'fc', WEIGHT_AND_BIAS),
        ],
    ),
)


def take_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the backbone out of a detector or segmenter; out of mmpretrain's classifiers also the linear classifier.

    Returns:
        The tensors without the prefix; all tensors if none has such a prefix.
    """
    prefix = next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in state_dict)), '')
    taken = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    return {**taken, **{key: tensor for key, tensor in state_dict.items() if key.startswith('head.fc.')}}
