"""The layout of Lucid 1 and 2: `lucid.nn.SelectiveKernel` and `lucid.models.SKNet`."""

import re
from collections.abc import Mapping

from torch import Tensor

from ...errors import MismatchedCheckpointError

_UNIT = {
    'branches.': 'paths.',
    'attention.1.': 'attn.fc_reduce.',
    'attention.2.': 'attn.bn.',
    'attention.4.': 'attn.fc_select.',
}
_BLOCK = {
    'conv1.': 'conv1.',
    **{f'sk_module.{theirs}': f'conv2.{ours}' for theirs, ours in _UNIT.items()},
    'bn2.': 'bn2.',
    'conv3.0.': 'conv3.conv.',
    'conv3.1.': 'conv3.bn.',
    'downsample.': 'downsample.',
}
_STEM = {'stem.0.': 'conv1.', 'stem.1.': 'bn1.', 'fc.': 'fc.'}
_DEEP_STEM = {'stem.': 'conv1.', 'fc.': 'fc.'}  # no norm follows its last convolution


def convert_lucid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of Lucid's SelectiveKernel or SKNet to that of `timm_sk.lucid`'s classes of the same names.

    The result also fits the architectures `sk_resnet_18`, `sk_resnet_34`, `sk_resnet_50` and `sk_resnext_50_32x4d`.
    Lucid's `fc.bias` [1, classes] becomes [classes]; no other tensor changes.

    Args:
        state_dict: Lucid's names and tensors.

    Returns:
        The same tensors in the same order, under our names.

    Raises:
        MismatchedCheckpointError: If a name is not of that layout; names it.
    """
    stem = _DEEP_STEM if 'stem.6.weight' in state_dict else _STEM
    return {_rename(key, stem): tensor.flatten() if key == 'fc.bias' else tensor for key, tensor in state_dict.items()}


def _rename(key: str, stem: dict[str, str]) -> str:
    prefix = re.match(r'layer\d+\.\d+\.', key)
    block = prefix[0] if prefix else ''
    rest = key.removeprefix(block)
    for theirs, ours in (_BLOCK if block else {**_UNIT, **stem}).items():
        if rest.startswith(theirs):
            return block + ours + rest.removeprefix(theirs)
    raise MismatchedCheckpointError(
        f"{key} is not a name of Lucid's SelectiveKernel or SKNet (versions 1 and 2): check whose weights these are."
    )
