"""Random weights for comparisons: no norm is an identity, and activations stay of order 1."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LAST_NORM = 0.25


def fill(model: nn.Module, images: Tensor) -> nn.Module:
    """Draw every parameter and buffer of a residual net, in place, and return it in train mode.

    Convolutions and linear layers get He's variance. Norms get scales in 0.5 to 1.5 and random shifts. The scales of
    the last norm of each residual branch are multiplied by `LAST_NORM`: without that, rounding grows so much with depth
    that the float32 gradients of timm's own skresnext50_32x4d differ by 1e-1 in norm between two memory formats; with
    it, by 1e-2. The running statistics are those of `images` with random changes.

    Args:
        model: Net whose residual blocks have an attribute `downsample`, as in timm.
        images: Batch [B, 3, H, W] for the statistics, B above 1.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    def around_one(like: Tensor, spread: float) -> Tensor:
        return 1 + spread * (2 * torch.rand(like.shape, generator=generator) - 1)

    norms = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, _BatchNorm):
            norms.append((module, module.momentum))
            module.weight.data = around_one(module.weight, 0.5)
            module.bias.data = 0.1 * normal(module.bias)
            module.momentum = 1.0  # one pass replaces the running statistics
    for block in model.modules():
        if hasattr(block, 'downsample'):
            branch = [m for name, m in block.named_modules() if not name.startswith('downsample')]
            last = [module for module in branch if isinstance(module, _BatchNorm)][-1]
            last.weight.data *= LAST_NORM
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in norms:
        norm.momentum = momentum
        mean, variance = norm.running_mean, norm.running_var
        if mean is not None and variance is not None:
            mean += 0.1 * variance.sqrt() * normal(mean)
            variance *= around_one(variance, 0.25)
    return model
