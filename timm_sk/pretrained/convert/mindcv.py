"""MindCV's SK-ResNets (mindspore-lab/mindcv, mindcv/models/sknet.py)."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from .rename import Rule, rename

_NORM_LEAVES = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}
_NORM = '|'.join(_NORM_LEAVES)


def _norm(replacement: str) -> Callable[[re.Match[str]], str]:
    """A norm's new name from a template for its module; the last group is the leaf."""
    return lambda match: f'{match.expand(replacement)}.{_NORM_LEAVES[match[match.re.groups]]}'


_CONV = r'(layer\d\.\d+\.conv\d)'
_RULES: tuple[Rule, ...] = (
    (r'conv1\.weight', 'conv1.weight'),
    (rf'bn1\.({_NORM})', _norm('bn1')),
    (rf'{_CONV}\.paths\.(\d)\.features\.0\.weight', r'\1.paths.\2.conv.weight'),
    (rf'{_CONV}\.paths\.(\d)\.features\.1\.({_NORM})', _norm(r'\1.paths.\2.bn')),
    (rf'{_CONV}\.attn\.(fc_reduce|fc_select)\.weight', r'\1.attn.\2.weight'),
    (rf'{_CONV}\.attn\.bn\.({_NORM})', _norm(r'\1.attn.bn')),
    (rf'{_CONV}\.0\.weight', r'\1.conv.weight'),
    (rf'{_CONV}\.1\.({_NORM})', _norm(r'\1.bn')),
    (r'(layer\d\.\d+)\.down_sample\.0\.weight', r'\1.downsample.0.weight'),
    (rf'(layer\d\.\d+)\.down_sample\.1\.({_NORM})', _norm(r'\1.downsample.1')),
    (r'classifier\.(weight|bias)', r'fc.\1'),
)


def convert_mindcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From MindCV's `skresnet18`, `skresnet34`, `skresnet50`, `skresnext50_32x4d` to `*_mindcv`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return rename(state_dict, _RULES, layout='MindCV SK-ResNet')
