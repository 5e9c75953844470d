"""The model that the settings name, and its frozen modules."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..factory import create_model
from ..pretrained import load_checked, read_checkpoint, to_our_layout
from .config import Config


def build_model(config: Config, num_classes: int, *, initial_weights: bool = True) -> nn.Module:
    """Build the model, with the weights that the settings name; a model without classifier takes no classifier.

    Raises:
        ValueError: If the model or its weights do not exist, or it does not support the settings.
    """
    arguments: dict[str, Any] = dict(
        in_chans=config.in_chans,
        global_pool=config.gp,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        drop_block_rate=config.drop_block,
    )
    options = {name: value for name, value in arguments.items() if value is not None}
    file = config.initial_checkpoint if initial_weights else None
    weights = to_our_layout(read_checkpoint(file, use_ema=True)) if file else None
    pretrained = initial_weights and config.pretrained and weights is None
    try:
        model = create_model(config.model, pretrained, num_classes=num_classes, **options)
        if weights is not None:
            classifier: Any = model.pretrained_cfg['classifier']
            names = () if num_classes else (classifier,) if isinstance(classifier, str) else classifier
            load_checked(model, weights, dropped=[f'{name}.{leaf}' for name in names for leaf in ('weight', 'bias')])
        return model
    except TypeError as error:
        raise ValueError(f'{config.model} does not support these settings: {error}') from error


def freeze(model: nn.Module, start: str | None, *, all_norms: bool = False) -> list[nn.Module]:
    """Freeze the children of a model before one, or before the classifier ('head').

    Returns the modules that have to stay in eval mode; with `all_norms` every BatchNorm is among them.

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
