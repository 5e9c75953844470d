"""The way every family builds a model: timm's builder, with weights that are verified and fit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm.models
from torch import Size, Tensor, nn

from ..checkpoints import CHECKPOINTS, Checkpoint, of_arch, of_family
from ..errors import CorruptCheckpointError, NoWeightsError
from ..pretrained import bundled_file, check_state_dict, obtain, to_our_layout

StateDict = dict[str, Tensor]

_SOURCE_FIELDS = ('file', 'url', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict')  # of a timm cfg


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
        pretrained: Load weights. Those of the table's row come from the first of its sources that works, and are
            verified before a tensor is used; a source that the caller names is left to timm.
        **kwargs: What `timm.create_model` passes on, and the class's own arguments.

    Raises:
        NoWeightsError: If weights are asked for and the tag has none.
        CorruptCheckpointError: If a file is missing, or a bundled one is damaged.
        UnobtainableCheckpointError: If none of the row's sources gives them.
        MismatchedCheckpointError: If the weights lack anything but a classifier of another number of classes.
    """
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if overlay.get('hf_hub_id') or overlay.get('url'):
        overlay.setdefault('file', None)  # else timm would prefer the bundled file to the source that the caller names
    cfg = timm.models.resolve_pretrained_cfg(variant, kwargs.pop('pretrained_cfg', None), overlay)
    features_only = kwargs.get('features_only', False)
    replaced: dict[str, Any] = {}
    if pretrained:
        row = _row_to_obtain(cfg)
        if row:
            needs_classifier = not features_only and kwargs.get('num_classes', cfg.num_classes) == cfg.num_classes
            weights = obtain(
                row,
                partial(shapes_of, row),
                cache_dir=kwargs.get('cache_dir'),
                needs_classifier=needs_classifier,
            )
            replaced = {field: getattr(cfg, field) for field in ('file', 'source')}
            cfg = replace(cfg, file=str(weights), source='')
        else:
            _require_weights(cfg, variant)
    return timm.models.build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=_fit_checker(cfg, features_only=features_only, replaced=replaced),
        **kwargs,
    )


def shapes_of(checkpoint: Checkpoint) -> dict[str, Size]:
    """Shapes by key of a checkpoint's architecture, with the checkpoint's classifier; costs no memory."""
    model = timm.create_model(checkpoint.arch, num_classes=checkpoint.num_classes, device='meta')
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename a state dict of a layout that `timm_sk.pretrained.convert` knows; one in timm's layout passes unchanged.

    For timm's loaders, such as `timm.models.load_pretrained` and `timm.models.load_checkpoint`.

    Raises:
        MismatchedCheckpointError: If a key has no place in the layout, or its nets are other functions than the model.
    """
    arch = getattr(model, 'pretrained_cfg', {}).get('architecture')
    return to_our_layout(state_dict, arch=arch)


def _row_to_obtain(cfg: timm.models.PretrainedCfg) -> Checkpoint | None:
    """The row of the table whose weights are meant; None if it has none, or the caller names another source."""
    name = f'{cfg.architecture}.{cfg.tag}'
    row = CHECKPOINTS.get(name)
    registered = timm.models.get_pretrained_cfg(name) if row and row.sources else None
    if registered is None:
        return None
    return row if all(getattr(cfg, field) == getattr(registered, field) for field in _SOURCE_FIELDS) else None


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


def _fit_checker(
    cfg: timm.models.PretrainedCfg, *, features_only: bool, replaced: Mapping[str, Any]
) -> Callable[[StateDict, nn.Module], StateDict]:
    """Make a state dict filter for timm's loader that lets only weights of the model itself pass.

    Args:
        cfg: The model's.
        features_only: Whether the classifier is dropped.
        replaced: Fields that the model's cfg gets back: once the file is read, nothing shows where it lies.
    """

    def check(state_dict: StateDict, model: nn.Module) -> StateDict:
        model_cfg: dict[str, Any] = vars(model)['pretrained_cfg']
        model_cfg.update(replaced)
        for field in [field for field in replaced if replaced[field] is None]:
            del model_cfg[field]
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
