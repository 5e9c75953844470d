"""The mechanism as modules, usable without any model."""

from .conv_norm_act import ConvNormAct
from .selective_kernel import SelectiveKernel, SelectiveKernelAttn
from .variants import SigmoidSelectiveKernel, StackedSelectiveKernel

__all__ = ['ConvNormAct', 'SelectiveKernel', 'SelectiveKernelAttn', 'SigmoidSelectiveKernel', 'StackedSelectiveKernel']
