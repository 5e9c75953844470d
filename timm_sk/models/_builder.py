"""Model builder shared by all families: timm's, with verified weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm.models
from torch import Size, Tensor, nn

from ..checkpoints import CHECKPOINTS, Checkpoint, of_arch, of_family
from ..errors import CorruptCheckpointError, NoWeightsError
from ..pretrained import WEIGHTS_NAME, bundled_folder, check_state_dict, fetch, to_our_layout

StateDict = dict[str, Tensor]

_SOURCE_FIELDS = ('file', 'url', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict')  # of a timm cfg


def family_cfgs(family: str) -> dict[str, timm.models.DefaultCfg]:
    """Timm's `default_cfgs` of one family, from its rows of the checkpoint table."""
    rows = of_family(family)
    cfgs = {row.name: dict(row.timm_cfg(), file=None) for row in rows}
    for row in filter(lambda row: row.bundled, rows):
        cfgs[row.name]['file'] = str(bundled_folder(row.name) / WEIGHTS_NAME)
    return timm.models.generate_default_cfgs(cfgs)


def build_model(model_cls: Callable[..., nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build one variant through `timm.models.build_model_with_cfg`.

    Args:
        model_cls: Class of the trunk, or a function that builds it.
        variant: Name of the architecture.
        pretrained: Load weights: those of the checkpoint table, from the first source that works and verified before
            a tensor is used, or those of a source that the caller names, read by timm.
        **kwargs: Arguments of `timm.create_model` and of the class.

    Raises:
        NoWeightsError: If the tag has no weights.
        CorruptCheckpointError: If a file is missing, or the bundled file is damaged.
        UnobtainableCheckpointError: If none of the checkpoint's sources works.
        MismatchedCheckpointError: If keys or shapes are not the model's; only a classifier of another number of
            classes may be missing or different.
    """
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if overlay.get('hf_hub_id') or overlay.get('url'):
        overlay.setdefault('file', None)  # timm would prefer the bundled file to the caller's source
    cfg = timm.models.resolve_pretrained_cfg(variant, kwargs.pop('pretrained_cfg', None), overlay)
    row = _find_row(cfg, variant) if pretrained else None

    def construct(**model_args: Any) -> nn.Module:
        model = model_cls(**model_args)
        if pretrained:
            _load(model, cfg, row, kwargs)
        return model

    return timm.models.build_model_with_cfg(construct, variant, pretrained=False, pretrained_cfg=cfg, **kwargs)


def shapes_of(checkpoint: Checkpoint) -> dict[str, Size]:
    """Shapes by key of a checkpoint's architecture, with the checkpoint's classifier; allocates no memory."""
    model = timm.create_model(checkpoint.arch, num_classes=checkpoint.num_classes, device='meta')
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _find_row(cfg: timm.models.PretrainedCfg, variant: str) -> Checkpoint | None:
    """Find the row of the checkpoint table whose weights a cfg names; None if the caller names another source."""
    name = f'{cfg.architecture}.{cfg.tag}'
    row = CHECKPOINTS.get(name)
    if row and row.sources:
        registered = timm.models.get_pretrained_cfg(name)
        if registered and all(getattr(cfg, field) == getattr(registered, field) for field in _SOURCE_FIELDS):
            return row
    if cfg.file and not (cfg.state_dict or Path(cfg.file).exists()) and cfg.source != 'hf-hub':
        raise CorruptCheckpointError(f'The checkpoint file {cfg.file} is missing.')
    if cfg.has_weights or cfg.state_dict:
        return None
    others = [row.name for row in of_arch(variant) if row.sources]
    instead = f'it has {", ".join(others)}' if others else '`timm-sk weights list` shows those that exist'
    raise NoWeightsError(
        f'There are no pretrained weights of {variant}{"." + cfg.tag if cfg.tag else ""}: {instead}.',
        in_python='Use `pretrained=False` for random weights.',
    )


def _load(model: nn.Module, cfg: timm.models.PretrainedCfg, row: Checkpoint | None, kwargs: dict[str, Any]) -> None:
    """Load the weights of the row, or without a row those of the cfg, before timm wraps the model for features.

    Of the arguments of `timm.create_model`, `features_only`, `pretrained_strict` and `cache_dir` are used.
    """
    features_only, cache_dir = kwargs.get('features_only', False), kwargs.get('cache_dir')
    drops_classifier = features_only or model.num_classes != cfg.num_classes
    if row:
        path = fetch(row, partial(shapes_of, row), cache_dir=cache_dir, needs_classifier=not drops_classifier)
        cfg = replace(cfg, file=str(path), source='')

    def rename_and_check(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = to_our_layout(state_dict, arch=cfg.architecture)
        check_state_dict(
            state_dict,
            {key: tensor.shape for key, tensor in model.state_dict().items()},
            dropped=[f'{cfg.classifier}.{leaf}' for leaf in ('weight', 'bias')] if drops_classifier else [],
            adapted=[f'{cfg.first_conv}.weight'],
        )
        return state_dict

    timm.models.load_pretrained(
        model,
        cfg.to_dict(),
        num_classes=0 if features_only else model.num_classes,
        in_chans=model.in_chans,
        filter_fn=rename_and_check,
        strict=kwargs.get('pretrained_strict', True),
        cache_dir=cache_dir,
    )
