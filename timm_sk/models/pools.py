"""Pools of other implementations: after the stem of their nets, and in MindCV's ResNeSt blocks."""

import math

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn

torch.fx.wrap('_max_pool_ceil')  # leaves for symbolic tracing, since both look at the size
torch.fx.wrap('pad_same')


def _max_pool_ceil(x: Tensor) -> Tensor:
    if min(x.shape[-2:]) < 2:
        raise ValueError(
            f'The pool after the stem has no padding and needs 2x2 features, got {x.shape[-2]}x{x.shape[-1]}: '
            'use images of at least 3x3 pixels.'
        )
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


class CeilPool(nn.Module):
    """3x3 max pool of stride 2 without padding that rounds the size up: the stem's pool of the authors' Caffe nets."""

    def forward(self, x: Tensor) -> Tensor:
        return _max_pool_ceil(x)


class SamePool(nn.Module):
    """3x3 max pool of stride 2 with TensorFlow's SAME padding: the stem's pool of MindSpore's nets."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(pad_same(x, (3, 3), (2, 2), value=-math.inf), 3, stride=2)


class SameAveragePool(nn.Module):
    """Average pool of MindSpore's nets: TensorFlow's SAME padding, not counted in the average.

    timm's `AvgPool2dSame` counts the padding.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # both are averages over the whole window, so their ratio is the average over the pixels inside the image
        return self._average(x) / self._average(torch.ones_like(x[:1, :1]))

    def _average(self, x: Tensor) -> Tensor:
        padded = pad_same(x, (self.kernel_size, self.kernel_size), (self.stride, self.stride))
        return F.avg_pool2d(padded, self.kernel_size, self.stride)
