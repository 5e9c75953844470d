"""Units that replace a depthwise convolution, or follow it, in the nets of `sk_mobile`."""

from timm.layers import LayerType, SqueezeExcite
from torch import nn

from ..layers import SelectiveKernel

UNITS = ('sk', 'se', 'plain')


def require_unit(unit: str) -> None:
    """Check the name of a unit."""
    if unit not in UNITS:
        raise ValueError(
            f'unit must be one of {", ".join(UNITS)}, got "{unit}": "sk" selects kernels, "se" weighs channels only, '
            '"plain" is the original net.'
        )


def _attention_width(channels: int) -> int:
    """Equation 4 of the paper, d = max(C / r, L), with its defaults."""
    return max(channels // 16, 32)


def selective_kernel(
    depthwise: nn.Conv2d, *, act_layer: LayerType, norm_layer: LayerType, activate_branches: bool
) -> SelectiveKernel:
    """Make the SK unit for a depthwise convolution and its norm, on the convolution's device and in its dtype."""
    unit = SelectiveKernel(
        depthwise.in_channels,
        depthwise.out_channels,
        kernel_size=[3, 5],
        stride=depthwise.stride[0],
        dilation=depthwise.dilation[0],
        groups=depthwise.groups,
        rd_channels=_attention_width(depthwise.out_channels),
        keep_3x3=True,
        split_input=False,
        act_layer=act_layer,
        norm_layer=norm_layer,
        device=depthwise.weight.device,
        dtype=depthwise.weight.dtype,
    )
    if not activate_branches:  # the core layer has one act_layer for branches and attention
        for path in unit.paths:
            path.act = nn.Identity()
    return unit


def squeeze_excite(depthwise: nn.Conv2d, *, act_layer: LayerType) -> nn.Module:
    """Make squeeze-and-excitation of the same width, on the convolution's device and in its dtype."""
    return SqueezeExcite(
        depthwise.out_channels,
        rd_channels=_attention_width(depthwise.out_channels),
        act_layer=act_layer,
        device=depthwise.weight.device,
        dtype=depthwise.weight.dtype,
    )
