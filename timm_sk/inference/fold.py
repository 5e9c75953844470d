"""Folds all norms of a model, also those that `timm.utils.reparameterize_model` does not reach.

timm's function calls no method of the root module, so `fold_model` folds the norms of stems and heads, and those of
timm's MobileNetV2 blocks.
"""

import timm.models
from torch import nn
from torchvision.models import ShuffleNetV2

from ..layers.bypass import can_bypass, runs_as_known
from ..layers.folded_conv import FoldedConv, fold_norm, fold_sequence, is_plain, require_eval

_TRUNKS = (timm.models.ResNet, timm.models.EfficientNet, timm.models.FeatureListNet, ShuffleNetV2)
# Convolution, norm and activation; a norm of timm's EfficientNet holds its activation.
_STEMS_AND_HEADS = (('conv1', 'bn1', 'act1'), ('conv_stem', 'bn1', ''), ('conv_head', 'bn2', ''), ('conv5', '', ''))
_BLOCKS = {
    'InvertedResidual': (('conv_pw', 'bn1', ''), ('conv_dw', 'bn2', ''), ('conv_pwl', 'bn3', '')),
    'DepthwiseSeparableConv': (('conv_dw', 'bn1', ''), ('conv_pw', 'bn2', '')),
}  # timm's names for the blocks of MobileNetV2


def fold_model(model: nn.Module) -> None:
    """Fold, in place, every norm that follows a convolution in our units and in the trunks around them.

    Raises:
        ValueError: If a part of the model is in train mode.
    """
    require_eval(*model.modules())
    timm.models.reparameterize_model(model, inplace=True)
    for module in list(model.modules()):
        if isinstance(module, _TRUNKS):
            _fold_triples(module, _STEMS_AND_HEADS)
        elif type(module).__module__.startswith('timm.models.'):
            _fold_triples(module, _BLOCKS.get(type(module).__name__, ()))


def wrap_convolutions(model: nn.Module) -> None:
    """Replace convolutions without a norm by `FoldedConv`, in place, so that their weights can be packed too."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if is_plain(child):
                setattr(module, name, FoldedConv(child, child.weight, child.bias))


def _fold_triples(parent: nn.Module, triples: tuple[tuple[str, str, str], ...]) -> None:
    """Fold those of the named convolutions, norms and activations that a module has."""
    children = dict(parent.named_children())
    for conv, norm, act in triples:
        layer = children.get(conv)
        if isinstance(layer, nn.Sequential) and len(layer):  # the norm of its last convolution is outside
            fold_sequence(layer)
            if not runs_as_known(layer) or not can_bypass(layer, parts=False):
                continue
            conv = f'{conv}.{list(layer._modules)[-1]}'
        if layer is not None and norm in children:
            fold_norm(parent, conv, norm, act=act if act in children else None)
