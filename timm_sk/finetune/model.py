"""The model that the settings name, and which parts of it stay as they are."""

from typing import Any

import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import Config


def build_model(config: Config, num_classes: int, **overrides: Any) -> nn.Module:
    """The model that the settings name, with the weights that it begins with.

    Args:
        config: The settings.
        num_classes: Of the data.
        **overrides: Arguments of `timm.create_model` that win.

    Raises:
        ValueError: If there is no such model, no such weights, or it lacks what the settings ask for.
    """
    wanted: dict[str, Any] = dict(
        in_chans=config.in_chans,
        global_pool=config.gp,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        drop_block_rate=config.drop_block,
        checkpoint_path=config.initial_checkpoint,
    )
    options = {name: value for name, value in wanted.items() if value is not None} | overrides
    pretrained = options.pop('pretrained', config.pretrained and config.initial_checkpoint is None)
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=num_classes, **options)
    except RuntimeError as error:  # timm's, for names that it does not know and files that do not fit
        raise ValueError(f'{config.model} cannot be built: {" ".join(str(error).split())}') from error
    except TypeError as error:
        raise ValueError(f'{config.model} does not take these settings: {error}') from error


def freeze(model: nn.Module, start: str | None, *, all_norms: bool = False) -> list[nn.Module]:
    """Freeze what lies below a part of a model, and say what has to stay in eval mode.

    Args:
        model: A model of timm; its children are taken in the order of the forward pass.
        start: The first part to train: a child's name, or 'head' for the classifier; None freezes nothing.
        all_norms: Keep the running statistics of every BatchNorm, frozen or not.

    Raises:
        ValueError: If it has no such part.
    """
    frozen: list[nn.Module] = []
    if start is not None:
        names = [name for name, _ in model.named_children()]
        head = classifier_name(model)
        first = head if start == 'head' else start
        if first not in names:
            raise ValueError(f'freeze must be "head" or one of {", ".join(names)}, got {start!r}.')
        frozen = [child for name, child in model.named_children() if names.index(name) < names.index(first)]
        for module in frozen:
            module.requires_grad_(False)
    if all_norms:
        frozen += [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return frozen


def classifier_name(model: Any) -> str:
    """The name of the child that holds a model's classifier."""
    classifier = model.pretrained_cfg['classifier']
    return str(classifier if isinstance(classifier, str) else classifier[0]).partition('.')[0]
