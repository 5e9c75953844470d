"""timm's ResNet trunk with what selective-kernel networks add: a choice of stem pool, attention widths by stage."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import pad_same
from timm.models import ResNet
from torch import Tensor, nn

from .build import build_model


def _max_pool_ceil(x: Tensor) -> Tensor:
    if min(x.shape[-2:]) < 2:
        raise ValueError(
            f'The pool after the stem has no padding and needs 2x2 features, got {x.shape[-2]}x{x.shape[-1]}: '
            'use pictures of at least 3x3 pixels.'
        )
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


class CeilPool(nn.Module):
    """3x3 max pool of stride 2 without padding, rounding the size up: the stem's pool of the authors' Caffe nets."""

    def forward(self, x: Tensor) -> Tensor:
        return _max_pool_ceil(x)


def _max_pool_same(x: Tensor) -> Tensor:
    return F.max_pool2d(pad_same(x, (3, 3), (2, 2), value=-math.inf), 3, stride=2)


torch.fx.wrap('_max_pool_ceil')
torch.fx.wrap('_max_pool_same')


class SamePool(nn.Module):
    """3x3 max pool of stride 2 with TensorFlow's SAME padding, as MindSpore's nets have it after the stem."""

    def forward(self, x: Tensor) -> Tensor:
        return _max_pool_same(x)


def _average_pool_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    padded = pad_same(x, (kernel_size, kernel_size), (stride, stride))
    inside = pad_same(torch.ones_like(x[:1, :1]), (kernel_size, kernel_size), (stride, stride))
    # both are averages over the whole window, so that their ratio is the average over what is not padding
    return F.avg_pool2d(padded, kernel_size, stride) / F.avg_pool2d(inside, kernel_size, stride)


torch.fx.wrap('_average_pool_same')


class SameAveragePool(nn.Module):
    """Average pool with TensorFlow's SAME padding, which it does not count, as MindSpore's nets have it.

    timm's `AvgPool2dSame` counts it.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return _average_pool_same(x, self.kernel_size, self.stride)


class StemPoolResNet(ResNet):
    """`timm.models.ResNet` with another pool after the stem.

    Args:
        *args: As for timm's class.
        stem_pool: Makes the pool; None for timm's, which is padded by 1. It stays out of the way of `aa_layer` and
            `replace_stem_pool`, which bring a pool of their own.
        **kwargs: As for timm's class.
    """

    def __init__(self, *args: Any, stem_pool: Callable[[], nn.Module] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = self.get_submodule('maxpool')
        if stem_pool is not None and isinstance(pool, nn.MaxPool2d):
            self.maxpool = stem_pool()


def build_resnet(
    variant: str,
    pretrained: bool,
    model_args: dict[str, Any],
    kwargs: dict[str, Any],
    *,
    trunk: type[ResNet] = StemPoolResNet,
) -> nn.Module:
    """Build a variant from its numbers; what the caller passes wins.

    Args:
        variant: The architecture's name.
        pretrained: Load weights.
        model_args: The variant's arguments of the trunk.
        kwargs: The caller's. `sk_kwargs` are merged key by key into those of the variant's `block_args`; among them
            `rd_channels`, the attention's width, may have one entry per stage.
        trunk: The trunk's class.

    Raises:
        ValueError: If `sk_kwargs` has an unknown key, or `rd_channels` has not one entry per stage.
    """
    args = {'zero_init_last': False, **model_args, **kwargs}
    sk_kwargs = args.pop('sk_kwargs', None) or {}
    block_args = dict(args.get('block_args') or {})
    sk_kwargs = {**block_args.pop('sk_kwargs', {}), **sk_kwargs}
    args['block'] = _block_per_stage(args['block'], sk_kwargs, stages=len(args['layers']))
    args['block_args'] = block_args
    return build_model(trunk, variant, pretrained, **args)


def _block_per_stage(block: Any, sk_kwargs: dict[str, Any], *, stages: int) -> tuple[Any, ...]:
    """Bind `sk_kwargs` to the block, for each stage with its own attention width."""
    widths = sk_kwargs.get('rd_channels')
    if not isinstance(widths, Sequence):
        widths = [widths] * stages
    if len(widths) != stages:
        raise ValueError(f'rd_channels needs one entry per stage, got {list(widths)} for {stages} stages.')
    blocks = []
    for width in widths:
        own = {} if width is None else {'rd_channels': width}
        stage_block = partial(block, sk_kwargs={**sk_kwargs, **own})
        stage_block.expansion = block.expansion  # type: ignore[attr-defined]  # which the trunk asks of a block
        blocks.append(stage_block)
    return tuple(blocks)
