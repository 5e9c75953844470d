"""timm's ResNet trunk with another pool after the stem, and with attention widths by stage."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.models import ResNet
from torch import nn

from ._builder import build_model


class StemPoolResNet(ResNet):
    """`timm.models.ResNet` with another pool after the stem.

    Args:
        *args: Arguments of `timm.models.ResNet`.
        stem_pool: Makes the pool; None for timm's, which has a padding of 1. Ignored with `aa_layer` or
            `replace_stem_pool`, which have their own pool.
        **kwargs: Keyword arguments of `timm.models.ResNet`.
    """

    def __init__(self, *args: Any, stem_pool: Callable[[], nn.Module] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = self.get_submodule('maxpool')
        if stem_pool is not None and isinstance(pool, nn.MaxPool2d):
            self.maxpool = stem_pool()


def replace_shortcut_pools(model: ResNet, make_pool: Callable[[int], nn.Module]) -> None:
    """Replace the average pool before the convolution of every shortcut; timm has none at stride 1.

    Args:
        model: A trunk; without `avg_down`, it has no such pools and stays as it is.
        make_pool: Makes the pool of a stride, 1 or 2.
    """
    for name, module in model.named_modules():
        if name.endswith('.downsample') and isinstance(module, nn.Sequential) and len(module) == 3:
            reduces = getattr(module[0], 'stride', 1) in (2, (2, 2))
            module[0] = make_pool(2 if reduces else 1)


def build_resnet(
    variant: str,
    pretrained: bool,
    model_args: dict[str, Any],
    kwargs: dict[str, Any],
    *,
    trunk: type[ResNet] = StemPoolResNet,
) -> nn.Module:
    """Build a variant from its numbers; the caller's arguments win.

    Args:
        variant: Name of the architecture.
        pretrained: Load weights.
        model_args: Arguments of the trunk that define the variant.
        kwargs: Arguments of the caller. `sk_kwargs` are merged key by key into those of the variant's `block_args`;
            `rd_channels`, the attention's width, may have one entry per stage.
        trunk: Class of the trunk.

    Raises:
        ValueError: If `sk_kwargs` has an unknown key, or `rd_channels` another number of entries than stages.
    """
    args = {'zero_init_last': False, **model_args, **kwargs}
    sk_kwargs = args.pop('sk_kwargs', None) or {}
    block_args = dict(args.get('block_args') or {})
    sk_kwargs = {**block_args.pop('sk_kwargs', {}), **sk_kwargs}
    args['block'] = _block_per_stage(args['block'], sk_kwargs, stages=len(args['layers']))
    args['block_args'] = block_args
    return build_model(trunk, variant, pretrained, **args)


def _block_per_stage(block: Any, sk_kwargs: dict[str, Any], *, stages: int) -> tuple[Any, ...]:
    """Bind `sk_kwargs` to the block, once per stage, each with its attention width."""
    widths = sk_kwargs.get('rd_channels')
    if not isinstance(widths, Sequence):
        widths = [widths] * stages
    if len(widths) != stages:
        raise ValueError(f'rd_channels needs one entry per stage, got {list(widths)} for {stages} stages.')
    blocks = []
    for width in widths:
        own = {} if width is None else {'rd_channels': width}
        stage_block = partial(block, sk_kwargs={**sk_kwargs, **own})
        stage_block.expansion = block.expansion  # type: ignore[attr-defined]  # read by the trunk
        blocks.append(stage_block)
    return tuple(blocks)
