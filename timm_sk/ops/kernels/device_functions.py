"""Functions shared by the kernels: the position of a tile, branches with bias and activation, the gate."""

import triton
import triton.language as tl


@triton.jit
def place(program, channel_blocks, shares):
    """Image, block of channels and share of the pixels of a program, as 64-bit indices."""
    share = program % shares
    block = (program // shares) % channel_blocks
    image = program // (shares * channel_blocks)
    return image.to(tl.int64), block.to(tl.int64), share


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
def features(branch, offsets, mask, biases, M: tl.constexpr, ACTIVATION: tl.constexpr):
    """Load a tile of branch M in float32, with optional bias and activation; zeros outside of the tensor."""
    x = tl.load(branch + offsets, mask=mask, other=0.0).to(tl.float32)
    if len(biases) > 0:
        x = x + biases[M]
    if ACTIVATION == 'relu' or ACTIVATION == 'relu6':
        x = tl.where(x < 0.0, 0.0, x)  # not tl.maximum, which loses NaN
    if ACTIVATION == 'relu6':
        x = tl.where(x > 6.0, 6.0, x)
    if len(biases) > 0:
        x = tl.where(mask, x, 0.0)
    return x


@triton.jit
def gate_weights(logits, image, channel, is_channel, channels, COUNT: tl.constexpr, SIGMOID: tl.constexpr):
    """A tuple of the M weights [BLOCK_C] of an image's channels, in float32."""
    values = ()
    for m in tl.static_range(COUNT):
        row = (image * COUNT + m) * channels
        values = values + (tl.load(logits + row + channel, mask=is_channel, other=0.0).to(tl.float32),)
    weights = ()
    if SIGMOID:
        for m in tl.static_range(COUNT):
            weights = weights + (1.0 / (1.0 + tl.exp(-values[m])),)
    else:
        largest = values[0]
        for m in tl.static_range(1, COUNT):
            largest = tl.maximum(largest, values[m])
        total = tl.exp(values[0] - largest)
        for m in tl.static_range(1, COUNT):
            total += tl.exp(values[m] - largest)
        for m in tl.static_range(COUNT):
            weights = weights + (tl.exp(values[m] - largest) / total,)
    return weights
