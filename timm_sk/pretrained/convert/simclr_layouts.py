"""Layouts of SimCLRv2's SK-ResNets: the PyTorch port's state dict, and TensorFlow's variables (google-research/simclr).

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
from .layout import WEIGHT, WEIGHT_AND_BIAS, Layout, Leaves, Module, norm_leaves

_NORM = norm_leaves('.weight', '.bias', '.running_mean', '.running_var')


def _conv_norm(conv: str, norm: str, our_conv: str, our_norm: str) -> list[Module]:
    return [(conv, our_conv, WEIGHT), (norm, our_norm, _NORM)]


# The port's modules and ours, in the order of creation.
_STEM = [
    *_conv_norm('net.0.0', 'net.0.1.0', 'conv1.0', 'conv1.1'),
    *_conv_norm('net.0.2', 'net.0.3.0', 'conv1.3', 'conv1.4'),
    *_conv_norm('net.0.4', 'net.0.5.0', 'conv1.6', 'bn1'),
]
_SHORTCUT = _conv_norm('projection.shortcut.2', 'projection.bn.0', 'downsample.1', 'downsample.2')
_BLOCK = [
    *_conv_norm('net.0', 'net.1.0', 'conv1.conv', 'conv1.bn'),
    *_conv_norm('net.2.main_conv.0', 'net.2.main_conv.1.0', 'conv2.paths.conv', 'conv2.paths.bn'),  # of both branches
    *_conv_norm('net.2.mixing_conv.0', 'net.2.mixing_conv.1.0', 'conv2.attn.fc_reduce', 'conv2.attn.bn'),
    ('net.2.mixing_conv.2', 'conv2.attn.fc_select', WEIGHT),
    *_conv_norm('net.3', 'net.4.0', 'conv3.conv', 'conv3.bn'),
]
_DEPTHS = {87: (3, 4, 6, 3), 172: (3, 4, 23, 3), 257: (3, 8, 36, 3)}  # of the stages, by the number of convolutions
_HEAD = 'head.layers.'

# The optimizer's state, moving averages, counters of batches, and the rest of the projection head.
_UNUSED = re.compile(
    r'.*\.num_batches_tracked|ema_model/.*|memory.*|.*/(Momentum|LARSOptimizer)|head_contrastive/(?!nl_0/).*|head\.layers\.(?![01]\.).*'
)


def is_simclr_variable(key: str) -> bool:
    """Whether a key of either layout can be a weight of the net or of its projection layer, or is the training step."""
    return not _UNUSED.fullmatch(key)


class _PortLayout(Layout):
    """The PyTorch port's names; unused keys are dropped."""

    def __init__(self, name: str, signature: str) -> None:
        super().__init__(
            name,
            signature=(signature,),
            archs='.*_simclr(_proj)?',
            net=[*_STEM, ('fc', 'fc', WEIGHT_AND_BIAS), *_conv_norm(f'{_HEAD}0', f'{_HEAD}1', 'proj.0', 'proj.1')],
            prefix='net.{stage}.blocks.{block}.',
            modules=[*_SHORTCUT, *_BLOCK],
        )

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = {key: tensor for key, tensor in state_dict.items() if is_simclr_variable(key)}
        return _split_branches(super().to_ours(used))

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: tensor for key, tensor in state_dict.items() if is_simclr_variable(key)}
        return super().to_theirs(_join_branches(kept))


class _TensorFlowLayout(_PortLayout):
    """TensorFlow's names, which depend on the net's depth; kernels become views, and unused variables are dropped."""

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = [key for key in state_dict if is_simclr_variable(key) and key != 'global_step']
        names = _port_names(sum(key.startswith('base_model/conv2d') for key in used))
        if unknown := [key for key in used if key not in names]:
            raise MismatchedCheckpointError(f'"{unknown[0]}" is not a key of the layout {self.name}.')
        return super().to_ours({names[key]: _transpose(key, state_dict[key], (3, 2, 0, 1)) for key in used})

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        port = super().to_theirs(state_dict)
        names = _port_names(sum(tensor.ndim == 4 for tensor in port.values()))
        return {key: _transpose(key, port[name], (2, 3, 1, 0)) for key, name in names.items() if name in port}


SIMCLR_LAYOUTS = (
    _PortLayout('PyTorch SimCLRv2', 'net.1.blocks.0.projection.shortcut.2.weight'),
    _TensorFlowLayout('TensorFlow SimCLRv2', 'base_model/conv2d/kernel'),
)


def convert_simclr_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the whole projection head of either layout to the state of `timm_sk.simclr_projection`: the port's names.

    TensorFlow's last norm has no beta, which becomes zero.

    Raises:
        MismatchedCheckpointError: If there is no whole head.
    """
    names = _port_names(0)
    named = {names.get(key, key): _transpose(key, value, (3, 2, 0, 1)) for key, value in state_dict.items()}
    head = {key.removeprefix(_HEAD): value for key, value in named.items() if key.startswith(_HEAD)}
    linear = [head.get(f'{index}.weight', torch.empty(0)) for index in (0, 3, 6)]
    if any(weight.ndim != 2 for weight in linear):
        raise MismatchedCheckpointError('The checkpoint has no projection head: use a pretrained one of SimCLRv2.')
    head.setdefault('7.bias', torch.zeros(len(linear[-1])))
    return head


def _port_names(num_convolutions: int) -> dict[str, str]:
    """The port's names by TensorFlow's, of a net with so many convolutions and of the whole projection head."""
    modules = [*_STEM]
    for stage, depth in enumerate(_DEPTHS.get(num_convolutions, ()), start=1):
        for block in range(depth):
            prefix = f'net.{stage}.blocks.{block}.'
            modules += [(prefix + port, ours, leaves) for port, ours, leaves in ([] if block else _SHORTCUT) + _BLOCK]
    names: dict[str, str] = {}
    numbers = {WEIGHT: count(), _NORM: count()}
    for port, _, leaves in modules:
        scope = 'base_model/conv2d' if leaves is WEIGHT else 'base_model/batch_normalization'
        number = next(numbers[leaves])
        names |= _variables(f'{scope}_{number}' if number else scope, port, leaves)
    for layer in range(3):
        scope = f'head_contrastive/nl_{layer}'
        names |= _variables(f'{scope}/dense', f'{_HEAD}{3 * layer}', WEIGHT)
        names |= _variables(f'{scope}/batch_normalization', f'{_HEAD}{3 * layer + 1}', _NORM)
    return names | _variables('head_supervised/linear_layer/dense', 'fc', WEIGHT_AND_BIAS)


def _variables(scope: str, port: str, leaves: Leaves) -> dict[str, str]:
    """The port's names of a module's tensors by those of TensorFlow's variables."""
    kinds = ('gamma', 'beta', 'moving_mean', 'moving_variance') if leaves is _NORM else ('kernel', 'bias')
    return {f'{scope}/{kind}': f'{port}{leaf.theirs}' for kind, leaf in zip(kinds, leaves, strict=False)}


def _transpose(key: str, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """A kernel with its dimensions in the other library's order; other tensors as they are."""
    if key.endswith('/kernel') and tensor.ndim == 4:
        return tensor.permute(order)
    return tensor.t() if key.endswith('/kernel') and tensor.ndim == 2 else tensor


def _split_branches(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each branch its half of the channels."""
    split: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        halves = tensor.chunk(2) if '.paths.' in key and tensor.ndim else (tensor,)
        split |= {key.replace('.paths.', f'.paths.{branch}.'): half for branch, half in enumerate(halves)}
    return split


def _join_branches(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if '.paths.0.' in key:
            tensor = torch.cat([tensor, state_dict[key.replace('.paths.0.', '.paths.1.')]])
        if '.paths.1.' not in key:
            joined[key.replace('.paths.0.', '.paths.')] = tensor
    return joined
