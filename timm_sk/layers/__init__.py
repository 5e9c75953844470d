"""The mechanism as modules, usable without any model."""

from .conv_norm_act import ConvNormAct
from .lucid_selective_kernel import BareSelectiveKernel, BranchAttn
from .selective_kernel import SelectiveKernel, SelectiveKernelAttn
from .split_attention import SplitAttention
from .variants import RadixMajorSplitAttention, SigmoidSelectiveKernel, StackedSelectiveKernel

__all__ = [
    'BareSelectiveKernel',
    'BranchAttn',
    'ConvNormAct',
    'RadixMajorSplitAttention',
    'SelectiveKernel',
    'SelectiveKernelAttn',
    'SigmoidSelectiveKernel',
    'SplitAttention',
    'StackedSelectiveKernel',
]
