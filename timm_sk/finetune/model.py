"""The model that the settings name, and its frozen modules."""

from typing import Any

import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import Config


def build_model(config: Config, num_classes: int, **overrides: Any) -> nn.Module:
    """Build the model with its initial weights.

    Args:
        config: Settings.
        num_classes: Number of classes.
        **overrides: Arguments of `timm.create_model` that override the settings.

    Raises:
        ValueError: If the model or its weights do not exist, or it does not support the settings.
    """
    arguments: dict[str, Any] = dict(
        in_chans=config.in_chans,
        global_pool=config.gp,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        drop_block_rate=config.drop_block,
        checkpoint_path=config.initial_checkpoint,
    )
    options = {name: value for name, value in arguments.items() if value is not None} | overrides
    pretrained = options.pop('pretrained', config.pretrained and config.initial_checkpoint is None)
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=num_classes, **options)
    except RuntimeError as error:  # timm's, for unknown names and for files that do not fit
        raise ValueError(f'Cannot build {config.model}: {" ".join(str(error).split())}') from error
    except TypeError as error:
        raise ValueError(f'{config.model} does not support these settings: {error}') from error


def freeze(model: nn.Module, start: str | None, *, all_norms: bool = False) -> list[nn.Module]:
    """Freeze the first modules of a model; returns the modules that have to stay in eval mode.

    Args:
        model: Model of timm, with its children in the order of the forward pass.
        start: First child to train, or 'head' for the classifier; None freezes nothing.
        all_norms: Freeze the running statistics of every BatchNorm.

    Raises:
        ValueError: If it has no such child.
    """
    frozen: list[nn.Module] = []
    if start is not None:
        children = dict(model.named_children())
        classifier: Any = model.pretrained_cfg['classifier']  # type: ignore[index]
        head = (classifier if isinstance(classifier, str) else classifier[0]).partition('.')[0]
        first = head if start == 'head' else start
        if first not in children:
            raise ValueError(f'freeze must be "head" or one of {", ".join(children)}, got {start!r}.')
        frozen = [*children.values()][: [*children].index(first)]
        for module in frozen:
            module.requires_grad_(False)
    if all_norms:
        frozen += [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return frozen
