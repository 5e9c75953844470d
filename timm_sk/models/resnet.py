"""timm's ResNet trunk with what selective-kernel networks add: a choice of stem pool, attention widths by stage."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.models import ResNet
from torch import nn

from ._builder import build_model


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
