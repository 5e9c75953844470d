"""The mechanism as modules, usable without any model."""

from .conv_norm_act import ConvNormAct
from .large_selective_kernel import LargeSelectiveKernel
from .selective_kernel import SelectiveKernel, SelectiveKernelAttn
from .split_attention import SplitAttention

__all__ = ['ConvNormAct', 'LargeSelectiveKernel', 'SelectiveKernel', 'SelectiveKernelAttn', 'SplitAttention']
