"""The split of folded units on a CUDA device: convolutions alone, whose bias and activation fuse and select apply.

So a convolution's raw output is written once, and read once by each of the two; no branch is ever in memory.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.raw import RawBranches
from .folded import FoldedConv, FoldedConvNormAct, FoldedNorm
from .lean_norm import unobserved


def can_stay_raw(x: Tensor, paths: Sequence[nn.Module], *, radix: int = 1, after: Iterable[nn.Module] = ()) -> bool:
    """Whether a unit's branches may be left without bias and activation until the kernels read them.

    Args:
        x: The unit's input.
        paths: The modules that make its branches.
        radix: Branches that each of them makes.
        after: Modules that follow.

    Returns:
        True in inference on what the kernels take, if the paths are folded convolutions with one activation, which is
        the kernels', nothing follows, and no hook looks at any of them.
    """
    if torch.is_grad_enabled() or not ops.runs_kernels([x] * (len(paths) * radix)):
        return False
    convs = [_folded_conv(path) for path in paths]
    alike = None not in convs and len({conv.activation for conv in convs if conv is not None}) == 1
    nothing = all(type(module) in (FoldedNorm, nn.Identity) for module in after)
    return alike and nothing and all(map(unobserved, (*paths, *after)))


def raw_branches(paths: Sequence[nn.Module], shares: Sequence[Tensor], *, radix: int = 1) -> RawBranches:
    """Run the convolutions alone, after `can_stay_raw`.

    Args:
        paths: As there.
        shares: The input of each, [B, in_channels, H, W].
        radix: As there; the branches lie side by side in the channels.
    """
    raws: list[Tensor] = []
    shifts: list[Tensor] = []
    activation = ''
    for path, share in zip(paths, shares, strict=True):
        conv = _folded_conv(path)
        if conv is not None and conv.bias is not None:
            raws += conv.convolve_alone(share).chunk(radix, dim=1)
            shifts += conv.bias.chunk(radix)
            activation = conv.activation
    return RawBranches(raws, shifts, activation)


def _folded_conv(path: nn.Module) -> FoldedConv | None:
    """The convolution that is all of a path, if it is one with bias and an activation of the kernels."""
    conv = path.conv if type(path) is FoldedConvNormAct and type(path.aa) is nn.Identity else path
    if type(conv) is FoldedConv and conv.bias is not None and type(conv.act) is nn.Identity:
        return conv
    return None
