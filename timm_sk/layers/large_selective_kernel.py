"""The spatial selection of "Large Selective Kernel Network for Remote Sensing Object Detection" (arXiv:2303.09030).

Where an SK unit weighs its branches by channel, this one weighs them by position: a gate is a map [H, W].
"""

import torch
from torch import Tensor, nn


class LargeSelectiveKernel(nn.Module):
    """Select, at each position, among two depthwise kernels of which the larger continues the smaller.

    Input and output [B, channels, H, W]. The first branch is a 5x5 convolution, the second a 7x7 convolution with
    dilation 3 of the first's output, which together reach 23 pixels. The sum of the branches, each times its gate,
    multiplies the input. The gates are two sigmoids: they need not sum to 1.

    Args:
        channels: Channels of input and output; even.

    Raises:
        ValueError: If the number of channels is odd.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f'channels must be even, got {channels}: each branch has half of them.')
        self.out_channels = channels
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels, channels // 2, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(channels // 2, channels, 1)

    def split(self, x: Tensor) -> list[Tensor]:
        """Run both branches: [B, C, H, W] -> 2 x [B, C / 2, H, W]."""
        small = self.conv0(x)
        large = self.conv_spatial(small)
        return [self.conv1(small), self.conv2(large)]

    def logits(self, branches: list[Tensor]) -> Tensor:
        """Logits of the two gates, from the branches' mean and maximum over the channels: [B, 2, H, W]."""
        joined = torch.cat(branches, dim=1)
        return self.conv_squeeze(torch.cat([joined.mean(1, keepdim=True), joined.amax(1, keepdim=True)], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        branches = self.split(x)
        gates = self.logits(branches).sigmoid()
        selected = branches[0] * gates[:, :1] + branches[1] * gates[:, 1:]
        return x * self.conv(selected)
