"""Layouts of ResNeSts in detectors and segmenters, and the prefixes of their keys."""

from collections.abc import Mapping

from torch import Tensor

from .layout import BLOCK, NORM, WEIGHT, WEIGHT_AND_BIAS, Layout, Module
from .resnest_layouts import resnest_block

_PREFIXES = ('backbone.bottom_up.', 'backbone.', 'pretrained.')  # Detectron2's FPN, OpenMMLab, PyTorch-Encoding
_STEM_NORMS = ('conv1.1', 'conv1.4', 'bn1')


def _with_norm(theirs: str, conv: str, norm: str) -> list[Module]:
    """A convolution of Detectron2, which contains its norm."""
    return [(theirs, conv, WEIGHT), (f'{theirs}.norm', norm, NORM)]


BACKBONE_LAYOUTS = (
    # The authors' backbones for Detectron2, zhanghang1989/ResNeSt, resnest/d2/resnest.py
    Layout(
        'Detectron2 ResNeSt',
        signature=('res2.0.conv2.fc1.weight',),
        net=[
            module
            for number, norm in enumerate(_STEM_NORMS)
            for module in _with_norm(f'stem.conv1_{number + 1}', f'conv1.{3 * number}', norm)
        ],
        block=('res{stage+1}.{block}.', 'layer{stage}.{block}.'),
        modules=[
            *_with_norm('conv1', 'conv1', 'bn1'),
            *_with_norm('conv3', 'conv3', 'bn3'),
            *_with_norm('shortcut', 'downsample.1', 'downsample.2'),
            *(module for module in resnest_block(NORM) if module[0].startswith('conv2.')),
        ],
    ),
    # open-mmlab/mmdetection and mmsegmentation, models/backbones/resnest.py
    Layout(
        'mmdetection ResNeSt',
        signature=('stem.7.weight', 'layer1.0.conv2.fc1.weight'),
        net=[
            *((f'stem.{number}', f'conv1.{number}', WEIGHT) for number in (0, 3, 6)),
            *((f'stem.{3 * number + 1}', norm, NORM) for number, norm in enumerate(_STEM_NORMS)),
        ],
        block=BLOCK,
        modules=resnest_block(NORM),
    ),
    # open-mmlab/mmpretrain, models/backbones/resnest.py, which leaves out the pool of the first shortcut
    Layout(
        'mmpretrain ResNeSt',
        signature=('stem.2.bn.weight', 'layer1.0.conv2.fc1.weight'),
        net=[
            *((f'stem.{number}.conv', f'conv1.{3 * number}', WEIGHT) for number in (0, 1, 2)),
            *((f'stem.{number}.bn', norm, NORM) for number, norm in enumerate(_STEM_NORMS)),
            ('layer1.0.downsample.0', 'layer1.0.downsample.1', WEIGHT),
            ('layer1.0.downsample.1', 'layer1.0.downsample.2', NORM),
            ('head.fc', 'fc', WEIGHT_AND_BIAS),
        ],
        block=BLOCK,
        modules=resnest_block(NORM),
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
