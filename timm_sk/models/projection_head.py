"""The projection head of SimCLRv2, which maps features to the space of the contrastive loss."""

import os
from itertools import pairwise
from typing import Any

from torch import nn

from ..pretrained import check_state_dict, read_checkpoint
from ..pretrained.convert import convert_simclr_head
from .sknet_simclr import make_projection_layer


def projection_head(channels: int, out_channels: int = 128, **factory: Any) -> nn.Sequential:
    """Build the head with random weights: three layers, of which the first two keep the width and end with ReLU.

    Input [B, channels], output [B, out_channels].

    Args:
        channels: Features of the backbone.
        out_channels: Size of the projection.
        **factory: Device and dtype.
    """
    widths = [channels, channels, channels, out_channels]
    layers = [make_projection_layer(*pair, **factory) for pair in pairwise(widths)]
    return nn.Sequential(*(module for layer in layers for module in layer))[:-1]


def simclr_projection(path: str | os.PathLike[str]) -> nn.Sequential:
    """Load the projection head that a pretrained checkpoint of SimCLRv2 holds beside the net.

    `head(model.forward_head(model.forward_features(x), pre_logits=True))` is the projection z of the paper, with
    `model` a net that does not end in `_proj`. Only the head's tensors of a TensorFlow checkpoint are read.

    Args:
        path: The `.index` of a TensorFlow checkpoint, or a file of the PyTorch port.

    Returns:
        The head in eval mode: [B, C] -> [B, 128].

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it is damaged or of another format.
        MismatchedCheckpointError: If it has no such head.
    """
    state_dict = read_checkpoint(path, wanted=_is_head_variable)
    state = convert_simclr_head(state_dict)
    widths = state['1.weight'].numel(), state['7.weight'].numel()
    expected = projection_head(*widths, device='meta').state_dict()
    check_state_dict(state, {key: tensor.shape for key, tensor in expected.items()})
    head = projection_head(*widths)
    head.load_state_dict(state, strict=False)
    return head.eval()


def _is_head_variable(name: str) -> bool:
    return name.startswith('head_contrastive/') and not name.endswith('/Momentum')
