"""The names that the tests go through, with an input size that is small for each."""

import timm
import timm.models.sknet
from torch import nn

import timm_sk.registry

ARCHITECTURES = list(timm_sk.registry.architectures())
TIMM_NAMES = ['skresnet18', 'skresnet34', 'skresnet50', 'skresnet50d', 'skresnext50_32x4d']
ONE_PER_BLOCK = ['skresnet18', 'sknet_atto']  # basic, bottleneck


def upstream(name: str, **kwargs: object) -> nn.Module:
    """timm's own model of a name that the registry gives to ours."""
    return getattr(timm.models.sknet, name)(**kwargs)
