"""Models of each side: ours, timm's class of the same function, and the plain backbone without a selection."""

from typing import Any

import timm
import timm.models
from torch import nn

KERNEL_SIZES = (3, 5, 7, 9)

# Depths that timm lacks, and the paper's models, made with timm's classes: function of timm.models, its arguments
TIMM_FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    'skresnet26': ('skresnet50', dict(layers=[2, 2, 2, 2])),
    'skresnet101': ('skresnet50', dict(layers=[3, 4, 23, 3])),
    'skresnext26_32x4d': ('skresnext50_32x4d', dict(layers=[2, 2, 2, 2])),
    'skresnext101_32x4d': ('skresnext50_32x4d', dict(layers=[3, 4, 23, 3])),
    'sknet26': ('skresnext50_32x4d', dict(layers=[2, 2, 2, 2])),
    'sknet50': ('skresnext50_32x4d', {}),
}
# timm's model of the same depth and width with one plain convolution per unit
PLAIN_BACKBONES = {
    'skresnet18': 'resnet18',
    'skresnet34': 'resnet34',
    'skresnet26': 'resnet26',
    'skresnet50': 'resnet50',
    'skresnet50d': 'resnet50d',
    'skresnet101': 'resnet101',
    'skresnext50_32x4d': 'resnext50_32x4d',
    'sknet50': 'resnext50_32x4d',
    'resnest26d': 'resnet26d',
    'resnest50d': 'resnet50d',
}
_ATTENTION = {  # what timm's functions pass to the unit, which `block_args` replace
    'skresnet18': dict(rd_ratio=1 / 8, rd_divisor=16),
    'skresnet34': dict(rd_ratio=1 / 8, rd_divisor=16),
    'skresnet50': {},
    'skresnet50d': {},
    'skresnext50_32x4d': dict(rd_ratio=1 / 16, rd_divisor=32),
}
_RADIX_MODELS = ('resnest14d', 'resnest26d', 'resnest50d', 'resnest101e', 'resnest200e', 'resnest269e')


def branch_counts(arch: str) -> tuple[int, ...]:
    """The numbers of branches that ours and timm's can have, not 3 in a ResNeSt; raises ValueError if it is fixed."""
    possible = [*_ATTENTION, *TIMM_FUNCTIONS, *_RADIX_MODELS]
    if arch not in possible:
        raise ValueError(f'The number of branches of {arch} is fixed: pass one of {", ".join(possible)}.')
    return (1, 2, 4) if arch in _RADIX_MODELS else (1, 2, 3, 4)


def has_timm(arch: str) -> bool:
    """Whether timm's classes can build the same function."""
    return arch in TIMM_FUNCTIONS or hasattr(timm.models, arch)


def build(side: str, arch: str, *, branches: int | None = None) -> nn.Module:
    """Build a model of one of our architectures that has this side, with fresh weights, on the CPU in float32.

    `branches` is one of `branch_counts`: branches of kernel sizes 3, 5, 7, 9, each of which sees all input channels, or
    the radix of a ResNeSt; None for the architecture's own.
    """
    if side == 'plain':
        return timm.create_model(PLAIN_BACKBONES[arch])
    function, kwargs = TIMM_FUNCTIONS.get(arch, (arch, {}))
    changes: dict[str, Any] = {}
    if branches and arch in _RADIX_MODELS:
        changes = dict(block_args=dict(radix=branches, avd=True, avd_first=False))
    elif branches:
        attention: dict[str, Any] = dict(kernel_size=list(KERNEL_SIZES[:branches]), split_input=False)
        changes = dict(sk_kwargs=attention)
        if side == 'timm':
            changes = dict(block_args=dict(sk_kwargs=_ATTENTION[function] | attention))
    if side == 'ours':
        return timm.create_model(arch, **changes)
    model = getattr(timm.models, function)(**kwargs, **changes)
    if arch.startswith('sknet'):  # the authors' pool after the stem
        model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return model
