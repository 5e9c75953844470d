"""Launches of the kernels: tile sizes, and how many programs share the pixels of an image.

The sizes are not measured; they come from counting bytes in flight and registers for compute capability 8 and 9.
"""

from collections import Counter
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

# Number of launches of each kernel in this process.
launches: Counter[str] = Counter()


class Sizes(NamedTuple):
    """Sizes for a device.

    Attributes:
        elements: Elements in a tile of a branch; 4096 in bfloat16 are four loads of 16 bytes by each of 128 threads.
        pixels: Largest number of pixels in a tile of contiguous tensors.
        channels: Largest number of channels in a tile of channels-last tensors.
        programs: With fewer programs than this, several share the pixels of an image.
    """

    elements: int
    pixels: int
    channels: int
    programs: int


# So that small shapes have several tiles, some partly filled.
INTERPRETED = Sizes(elements=64, pixels=16, channels=4, programs=16)


class Tile(NamedTuple):
    """Numbers of channels and pixels of a tile, powers of two."""

    channels: int
    pixels: int


def tile(channels: int, pixels: int, *, channels_last: bool, held: int, device: torch.device) -> Tile:
    """Choose the tile that a program reads at once.

    Args:
        channels: Number of channels of a branch.
        pixels: Number of pixels of a branch.
        channels_last: Whether channels, rather than pixels, are adjacent in memory.
        held: Number of tiles in registers at the same time.
        device: Device of the tensors.
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
    """Split the pixels of each image among programs where there are too few programs to fill the device.

    Args:
        programs: Number of programs without splitting.
        pixels: Number of pixels of an image.
        block: The tile.
        device: Device of the tensors.

    Returns:
        Number of shares, and pixels in each, a multiple of the tile's. They depend on the arguments only, so that sums
        are deterministic.
    """
    tiles = triton.cdiv(pixels, block.pixels)
    wanted = triton.cdiv(_sizes(device).programs, max(programs, 1))
    tiles_each = triton.cdiv(tiles, min(wanted, tiles))
    return triton.cdiv(tiles, tiles_each), tiles_each * block.pixels


def launch(name: str, kernel: Any, programs: int, device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch a kernel on the current stream of a device, with a one-dimensional grid, and count the launch."""
    launches[name] += 1
    # Triton launches on the current device, whichever the tensors are on
    with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
        kernel[(programs,)](*args, **constants)


def sizes_for(processors: int) -> Sizes:
    """Sizes for a device with a number of multiprocessors."""
    return Sizes(elements=4096, pixels=1024, channels=64, programs=8 * processors)


@lru_cache(maxsize=16)
def _sizes(device: torch.device) -> Sizes:
    if device.type != 'cuda':
        return INTERPRETED
    return sizes_for(torch.cuda.get_device_properties(device).multi_processor_count)
