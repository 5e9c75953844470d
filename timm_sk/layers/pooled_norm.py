"""Norms of pooled features [B, C, 1, 1]."""

from typing import Any

import torch
import torch.fx
from timm.layers import LayerType, get_norm_layer
from torch import Tensor, nn

from ..errors import TimmSkError


def make_pooled_norm(norm_layer: LayerType, channels: int, **factory: Any) -> nn.Module:
    """Make a norm for [B, channels, 1, 1].

    Raises:
        ValueError: If the norm does not support the number of channels, or would turn every value into a constant.
    """
    advice = (
        f'The attention has {channels} channels with one value each: use norm_layer="groupnorm1" or "layernorm2d", '
        'a partial of GroupNorm with fewer groups, or a larger rd_channels.'
    )
    try:
        norm = get_norm_layer(norm_layer)(channels, **factory)
    except ValueError as error:
        raise ValueError(f'The norm refuses the attention: {error}. {advice}') from error
    lone_groups = isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    if lone_groups or isinstance(norm, nn.InstanceNorm2d):
        raise ValueError(f'{norm} would turn every pooled value into a constant. {advice}')
    return norm


def require_batch(fused: Tensor, norm: nn.Module) -> None:
    """Refuse a descriptor [B, C] of one image where the norm would use its batch statistics.

    Tracers are not checked: a graph must not depend on the mode and batch that it is recorded with. Nor is a
    SyncBatchNorm, which may see images of other devices.

    Raises:
        ValueError: If the norm is a BatchNorm in train mode and there is one image.
    """
    if isinstance(fused, torch.fx.Proxy) or torch.jit.is_tracing():
        return
    if norm.training and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and fused.shape[0] == 1:
        raise TimmSkError(
            'BatchNorm on pooled features needs at least 2 images in train mode, got a batch of 1: use a larger batch.',
            in_python='Or call eval() on the model or on its norms, pass norm_layer="layernorm2d" or "groupnorm1", or '
            'train on several devices with SyncBatchNorm.',
        )
