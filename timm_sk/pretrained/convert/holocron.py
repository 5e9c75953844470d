"""Holocron's SKNet (frgfm/Holocron, holocron/models/classification/sknet.py; one layout at v0.1.3 and v0.2.1)."""

import re
from collections.abc import Mapping

from torch import Tensor

from .rename import rename

_MODULES = {
    'conv.0': 'conv1.conv',
    'conv.1': 'conv1.bn',
    'conv.3.path_convs.0.0': 'conv2.paths.0.conv',
    'conv.3.path_convs.0.1': 'conv2.paths.0.bn',
    'conv.3.path_convs.1.0': 'conv2.paths.1.conv',
    'conv.3.path_convs.1.1': 'conv2.paths.1.bn',
    'conv.3.sa.1': 'conv2.attn.fc_reduce',
    'conv.3.sa.2': 'conv2.attn.bn',
    'conv.3.sa.4': 'conv2.attn.fc_select',
    'conv.4': 'conv3.conv',
    'conv.5': 'conv3.bn',
    'downsample.0': 'downsample.0',
    'downsample.1': 'downsample.1',
}


def _in_block(match: re.Match[str]) -> str:
    stage, block, module, leaf = match.groups()
    return f'layer{int(stage) - 3}.{block}.{_MODULES[module]}.{leaf}'


_RULES = (
    (r'features\.0\.(weight)', r'conv1.\1'),
    (r'features\.1\.(\w+)', r'bn1.\1'),
    (rf'features\.([4-7])\.(\d+)\.({"|".join(map(re.escape, _MODULES))})\.(\w+)', _in_block),
    (r'head\.(weight|bias)', r'fc.\1'),
)


def convert_holocron(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From Holocron's `sknet50` to `sknet50_holocron`.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return rename(state_dict, _RULES, layout='Holocron SKNet')
