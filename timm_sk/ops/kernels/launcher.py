"""How the kernels are launched: their tiles, how many programs share the pixels, on which device.

The numbers below come from counting bytes in flight and registers, for compute capability 8 and 9, and from no
measurement.
"""

from collections import Counter
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

# How often each kernel was launched in this process.
launches: Counter[str] = Counter()


class Sizes(NamedTuple):
    """What is right for a device.

    Attributes:
        elements: Of a tile of each branch; 4096 in bfloat16 are four loads of 16 bytes by each of 128 threads.
        pixels: Most pixels of a tile where they lie side by side.
        channels: Most channels of a tile where they lie side by side.
        programs: Below so many, the pixels of a picture are shared among several.
    """

    elements: int
    pixels: int
    channels: int
    programs: int


INTERPRETED = Sizes(elements=64, pixels=16, channels=4, programs=16)  # odd small shapes have several tiles, not full


class Tile(NamedTuple):
    """Block sizes, powers of two."""

    channels: int
    pixels: int


def tile(channels: int, pixels: int, *, channels_last: bool, held: int, device: torch.device) -> Tile:
    """Choose the block of channels and pixels that a program reads at once.

    Args:
        channels: Of a branch.
        pixels: Of a branch.
        channels_last: Whether the channels lie side by side, rather than the pixels.
        held: Tiles that are in registers together.
        device: Where it runs.
    """
    sizes = _sizes(device)
    elements = min(2 * sizes.elements // triton.next_power_of_2(held), sizes.elements)
    most_channels, most_pixels = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if channels_last:
        block = min(most_channels, sizes.channels)
        return Tile(block, min(most_pixels, elements // block))
    block = min(most_pixels, sizes.pixels)
    return Tile(min(most_channels, elements // block), block)


def shares(programs: int, pixels: int, block: Tile, device: torch.device) -> tuple[int, int]:
    """Share the pixels of each picture among programs where there are too few of them to fill the device.

    Args:
        programs: As many as there are without.
        pixels: Of a picture.
        block: The tile.
        device: Where it runs.

    Returns:
        Number of shares, and the pixels of each, a multiple of the tile's. They depend on nothing else, so that sums
        are the same each time.
    """
    tiles = triton.cdiv(pixels, block.pixels)
    wanted = triton.cdiv(_sizes(device).programs, max(programs, 1))
    tiles_each = triton.cdiv(tiles, min(wanted, tiles))
    return triton.cdiv(tiles, tiles_each), tiles_each * block.pixels


def launch(name: str, kernel: Any, programs: int, device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch a kernel on a device's current stream, with a grid of one dimension, and count it."""
    launches[name] += 1
    # Triton launches on the current device, whichever the tensors are on
    with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
        kernel[(programs,)](*args, **constants)


def sizes_for(processors: int) -> Sizes:
    """The sizes for a device with so many multiprocessors."""
    return Sizes(elements=4096, pixels=1024, channels=64, programs=8 * processors)


@lru_cache(maxsize=16)
def _sizes(device: torch.device) -> Sizes:
    if device.type != 'cuda':
        return INTERPRETED
    return sizes_for(torch.cuda.get_device_properties(device).multi_processor_count)
