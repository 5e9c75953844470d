"""What the kernels have in common: where a tile lies, and what a branch is made from."""

import triton
import triton.language as tl


@triton.jit
def place(program, channel_blocks, shares):
    """Which picture, block of channels and share of the pixels a program has; indices of 64 bits."""
    share = program % shares
    block = (program // shares) % channel_blocks
    picture = program // (shares * channel_blocks)
    return picture.to(tl.int64), block.to(tl.int64), share


@triton.jit
def columns(vectors, channel, is_channel, COUNT: tl.constexpr):
    """Load a vector [C] for each branch: a tuple of float32 [BLOCK_C, 1], or an empty one where there are none."""
    loaded = ()
    if len(vectors) > 0:
        for m in tl.static_range(COUNT):
            values = tl.load(vectors[m] + channel, mask=is_channel, other=0.0).to(tl.float32)
            loaded = loaded + (values[:, None],)
    return loaded


@triton.jit
def features(branch, offsets, mask, scales, shifts, M: tl.constexpr, ACTIVATION: tl.constexpr):
    """Load a tile of branch M in float32, scaled, shifted and activated where asked; zeros outside of the tensor."""
    x = tl.load(branch + offsets, mask=mask, other=0.0).to(tl.float32)
    if len(scales) > 0:
        x = x * scales[M]
    if len(shifts) > 0:
        x = x + shifts[M]
    if ACTIVATION == 'relu' or ACTIVATION == 'relu6':
        x = tl.where(x < 0.0, 0.0, x)  # not tl.maximum, which loses NaN
    if ACTIVATION == 'relu6':
        x = tl.where(x > 6.0, 6.0, x)
    if len(shifts) > 0:
        x = tl.where(mask, x, 0.0)
    return x
