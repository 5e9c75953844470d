"""Layouts of SimCLRv2's SK-ResNets: TensorFlow's variables (google-research/simclr), and the PyTorch port's state dict.

Both have one convolution and one norm with the channels of both branches where we have two of each. TensorFlow numbers
its layers in the order of their creation. Converted, both have `proj`, the first layer of the projection head, if the
head is there.
"""

import re
from collections.abc import Mapping
from itertools import count

import torch
from torch import Tensor

from ...errors import MismatchedCheckpointError
from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout

# Our convolution and its norm, and the port's, in the order of creation.
_Layer = tuple[str, str | None, str, str | None]
_STEM: list[_Layer] = [
    ('conv1.0', 'conv1.1', 'net.0.0', 'net.0.1.0'),
    ('conv1.3', 'conv1.4', 'net.0.2', 'net.0.3.0'),
    ('conv1.6', 'bn1', 'net.0.4', 'net.0.5.0'),
]
_BLOCK: list[_Layer] = [
    ('downsample.1', 'downsample.2', 'projection.shortcut.2', 'projection.bn.0'),  # of a stage's first block
    ('conv1.conv', 'conv1.bn', 'net.0', 'net.1.0'),
    ('conv2.paths.conv', 'conv2.paths.bn', 'net.2.main_conv.0', 'net.2.main_conv.1.0'),  # of both branches
    ('conv2.attn.fc_reduce', 'conv2.attn.bn', 'net.2.mixing_conv.0', 'net.2.mixing_conv.1.0'),
    ('conv2.attn.fc_select', None, 'net.2.mixing_conv.2', None),
    ('conv3.conv', 'conv3.bn', 'net.3', 'net.4.0'),
]
_DEPTHS = {87: (3, 4, 6, 3), 172: (3, 4, 23, 3), 257: (3, 8, 36, 3)}  # of the stages, by the number of convolutions

# The optimizer's state, moving averages, and the second and third layer of the projection head.
_UNUSED = re.compile(
    r'global_step|ema_model/.*|memory.*|.*/(Momentum|LARSOptimizer)|head_contrastive/(?!nl_0/).*|head\.layers\.(?![01]\.).*'
)


def is_simclr_weight(key: str) -> bool:
    """Whether a key of either layout can be a weight of the net or of its projection layer."""
    return not _UNUSED.fullmatch(key)


class _PortLayout(Layout):
    """The PyTorch port's names; unused keys are dropped."""

    def __init__(self) -> None:
        super().__init__(
            'PyTorch SimCLRv2',
            signature=('net.1.blocks.0.projection.shortcut.2.weight',),
            archs='.*_simclr(_proj)?',
            net=[
                *((conv, ours, WEIGHT) for ours, _, conv, _ in _STEM),
                *((norm, ours, NORM) for _, ours, _, norm in _STEM if ours and norm),
                ('fc', 'fc', WEIGHT_AND_BIAS),
                ('head.layers.0', 'proj.0', WEIGHT),
                ('head.layers.1', 'proj.1', NORM),
            ],
            block=('net.{stage}.blocks.{block}.', 'layer{stage}.{block}.'),
            modules=[
                *((conv, ours, WEIGHT) for ours, _, conv, _ in _BLOCK),
                *((norm, ours, NORM) for _, ours, _, norm in _BLOCK if ours and norm),
            ],
        )

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = {key: tensor for key, tensor in state_dict.items() if is_simclr_weight(key)}
        return _split_branches(super().to_ours(used))

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().to_theirs(_join_branches(state_dict))


class _TensorFlowLayout(Layout):
    """TensorFlow's names, which depend on the net's depth; kernels become views, and unused variables are dropped."""

    def __init__(self) -> None:
        archs = '.*_simclr(_proj)?'
        super().__init__('TensorFlow SimCLRv2', signature=('base_model/conv2d/kernel',), archs=archs, net=())

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = {key: tensor for key, tensor in state_dict.items() if is_simclr_weight(key)}
        names = _tf_names(sum(key.startswith('base_model/conv2d') for key in used))
        if unknown := [key for key in used if key not in names]:
            raise MismatchedCheckpointError(f'"{unknown[0]}" is not a key of the layout {self.name}.')
        return _split_branches({names[key]: _transpose(key, tensor, (3, 2, 0, 1)) for key, tensor in used.items()})

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined = _join_branches(state_dict)
        names = _tf_names(sum(tensor.ndim == 4 for tensor in joined.values()))
        ours = {*names.values()}
        if unknown := [key for key in joined if key not in ours and not key.endswith('.num_batches_tracked')]:
            raise MismatchedCheckpointError(f'"{unknown[0]}" has no counterpart in the layout {self.name}.')
        kept = {theirs: joined[ours] for theirs, ours in names.items() if ours in joined}
        return {key: _transpose(key, tensor, (2, 3, 1, 0)) for key, tensor in kept.items()}


SIMCLR_LAYOUTS = (_PortLayout(), _TensorFlowLayout())


def convert_simclr_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the whole projection head of either layout to the state of `timm_sk.simclr_projection`: the port's names.

    TensorFlow's last norm has no beta, which becomes zero.

    Raises:
        MismatchedCheckpointError: If there is no whole head.
    """
    head = {key.removeprefix('head.layers.'): value for key, value in state_dict.items() if key.startswith('head.')}
    names = {key: ours for layer in range(3) for key, ours in _head_names(layer, 3 * layer, 3 * layer + 1).items()}
    head |= {names[key]: _transpose(key, value, ()) for key, value in state_dict.items() if key in names}
    if not {'1.weight', '7.weight'} <= head.keys():
        raise MismatchedCheckpointError('The checkpoint has no projection head: use a pretrained one of SimCLRv2.')
    head.setdefault('7.bias', torch.zeros_like(head['7.weight']))
    return head


def _tf_names(num_convolutions: int) -> dict[str, str]:
    """Our names by TensorFlow's, with the joined branches as `conv2.paths`."""
    layers = [(conv, norm) for conv, norm, _, _ in _STEM]
    for stage, depth in enumerate(_DEPTHS.get(num_convolutions, ()), start=1):
        for block in range(depth):
            prefix = f'layer{stage}.{block}.'
            layers += [(prefix + conv, norm and prefix + norm) for conv, norm, _, _ in _BLOCK[bool(block) :]]
    names, convs, norms = {}, count(), count()
    for conv, norm in layers:
        names[f'base_model/conv2d{_suffix(next(convs))}/kernel'] = f'{conv}.weight'
        if norm:
            names |= _norm_names(f'base_model/batch_normalization{_suffix(next(norms))}', norm)
    names['head_supervised/linear_layer/dense/kernel'] = 'fc.weight'
    names['head_supervised/linear_layer/dense/bias'] = 'fc.bias'
    return names | {key: f'proj.{ours}' for key, ours in _head_names(0, 0, 1).items()}


def _head_names(layer: int, linear: int, norm: int) -> dict[str, str]:
    scope = f'head_contrastive/nl_{layer}'
    return {f'{scope}/dense/kernel': f'{linear}.weight', **_norm_names(f'{scope}/batch_normalization', f'{norm}')}


def _norm_names(theirs: str, ours: str) -> dict[str, str]:
    leaves = dict(gamma='weight', beta='bias', moving_mean='running_mean', moving_variance='running_var')
    return {f'{theirs}/{their_leaf}': f'{ours}.{our_leaf}' for their_leaf, our_leaf in leaves.items()}


def _suffix(index: int) -> str:
    return f'_{index}' if index else ''


def _transpose(key: str, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """A kernel with its dimensions in the other library's order; other tensors as they are."""
    if not key.endswith('/kernel') or tensor.ndim not in (2, len(order)):
        return tensor
    return tensor.t() if tensor.ndim == 2 else tensor.permute(order)


def _split_branches(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each branch its half of the channels, or its own counter of batches."""
    split: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        parts = (tensor.chunk(2) if tensor.ndim else (tensor, tensor.clone())) if '.paths.' in key else (tensor,)
        split |= {key.replace('.paths.', f'.paths.{branch}.'): part for branch, part in enumerate(parts)}
    return split


def _join_branches(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        other = state_dict.get(key.replace('.paths.0.', '.paths.1.')) if '.paths.0.' in key else None
        if '.paths.1.' not in key:
            name = key.replace('.paths.0.', '.paths.')
            joined[name] = tensor if other is None or not tensor.ndim else torch.cat([tensor, other])
    return joined
