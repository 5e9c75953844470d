"""The way every family builds a model: timm's builder, with weights that are verified and fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.models
from torch import Tensor, nn

from ..checkpoints import CHECKPOINTS, of_arch, of_family
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, NoWeightsError
from ..pretrained import bundled_file, check_state_dict, verified_file
from ..pretrained.convert import (
    Converter,
    convert_caffe,
    convert_mindcv,
    convert_mindcv_resnest,
    convert_resnest,
    recognise,
)
from .pools import CeilPool, SamePool

StateDict = dict[str, Tensor]

# The pool after the stem of the nets of a layout, where it is not timm's.
_STEM_POOLS: dict[Converter, type[nn.Module]] = {
    convert_caffe: CeilPool,
    convert_mindcv: SamePool,
    convert_mindcv_resnest: SamePool,
}


def family_cfgs(family: str) -> dict[str, timm.models.DefaultCfg]:
    """Timm's `default_cfgs` of one family: its rows of the table, with the paths of the bundled files."""
    rows = of_family(family)
    cfgs = {row.name: dict(row.timm_cfg(), file=str(bundled_file(row)) if row.bundled else None) for row in rows}
    return timm.models.generate_default_cfgs(cfgs)


def build_model(model_cls: Callable[..., nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build one variant through `timm.models.build_model_with_cfg`.

    Args:
        model_cls: The trunk's class, or a function that builds it.
        variant: The architecture's name.
        pretrained: Load weights; a bundled file is verified before a tensor of it is used.
        **kwargs: What `timm.create_model` passes on, and the class's own arguments.

    Raises:
        NoWeightsError: If weights are asked for and the tag has none.
        CorruptCheckpointError: If a file is missing, or a bundled one is damaged.
        MismatchedCheckpointError: If the weights lack anything but a classifier of another number of classes.
    """
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if overlay.get('hf_hub_id') or overlay.get('url'):
        overlay.setdefault('file', None)  # else timm would prefer the bundled file to the source that the caller names
    cfg = timm.models.resolve_pretrained_cfg(variant, kwargs.pop('pretrained_cfg', None), overlay)
    if pretrained:
        _require_weights(cfg, variant)
        row = CHECKPOINTS.get(f'{cfg.architecture}.{cfg.tag}')
        if row and row.bundled and cfg.file == str(bundled_file(row)):  # not a file of the caller's
            verified_file(row)
    return timm.models.build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=_fit_checker(cfg, features_only=kwargs.get('features_only', False)),
        **kwargs,
    )


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename a state dict of a layout that `timm_sk.pretrained.convert` knows; one in timm's layout passes unchanged.

    For timm's loaders, such as `timm.models.load_pretrained` and `timm.models.load_checkpoint`.

    Raises:
        MismatchedCheckpointError: If the layout's nets have another pool after the stem than the model, which no key
            would tell.
    """
    converter = recognise(state_dict)
    if converter is None or converter is convert_resnest:  # the authors' layout of ResNeSt is timm's
        return state_dict
    pool = type(getattr(model, 'maxpool', None))
    needed = _STEM_POOLS.get(converter)
    if needed is not (pool if pool in _STEM_POOLS.values() else None):
        raise MismatchedCheckpointError(
            'The checkpoint is not of this model: its layout belongs to nets with another pool after the stem. '
            "Caffe's are `sknet50` and `sknet101`, MindCV's the names that end with `_mindcv`, and no others."
        )
    return converter(state_dict)


def _require_weights(cfg: timm.models.PretrainedCfg, variant: str) -> None:
    if cfg.file and not (cfg.state_dict or Path(cfg.file).exists()) and cfg.source != 'hf-hub':
        raise CorruptCheckpointError(f'The checkpoint file {cfg.file} is missing.')
    if cfg.has_weights or cfg.state_dict:
        return
    others = [row.name for row in of_arch(variant) if row.sources]
    instead = f' or one of its checkpoints: {", ".join(others)}' if others else ''
    raise NoWeightsError(
        f'There are no pretrained weights of {variant}{"." + cfg.tag if cfg.tag else ""}. '
        f'Use `pretrained=False` for random weights{instead}.'
    )


def _fit_checker(cfg: timm.models.PretrainedCfg, *, features_only: bool) -> Callable[[StateDict, nn.Module], StateDict]:
    """Make a state dict filter for timm's loader that lets only weights of the model itself pass."""

    def check(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = checkpoint_filter_fn(state_dict, model)
        drops_classifier = features_only or model.num_classes != cfg.num_classes
        check_state_dict(
            state_dict,
            {key: tensor.shape for key, tensor in model.state_dict().items()},
            dropped=[f'{cfg.classifier}.{leaf}' for leaf in ('weight', 'bias')] if drops_classifier else [],
            adapted=[f'{cfg.first_conv}.weight'],
        )
        return state_dict

    return check
