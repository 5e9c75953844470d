"""Synthetic images of single shapes on textured clutter: the data of the `shapes` checkpoints.

Extent, position, rotation and colour of the object vary, and so do clutter and noise. An image can be drawn again with
another extent and everything else equal, which shows how a network handles scale. The random stream is numpy's frozen
one (`RandomState`), and images are computed elementwise, so that a seed gives the same bytes everywhere.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ['CLASS_NAMES', 'MAX_SCALE', 'MIN_SCALE', 'TEST_COUNT', 'TEST_SEED', 'draw']

CLASS_NAMES = ('circle', 'crescent', 'cross', 'hourglass', 'ring', 'square', 'star', 'triangle')
MIN_SCALE, MAX_SCALE = 0.3, 0.9
TEST_SEED, TEST_COUNT = 190306586, 2000  # held-out images, for tests only

Floats = NDArray[np.floating]  # of 32 bits throughout

_CHUNK = 50  # images whose random numbers are drawn together; also keeps the arrays in the processor's cache
_TEXTURE_CELLS = (2, 4, 8, 16)  # per side, coarse to fine
_OUTLINE_POINTS = 64
_FAR_SIDE = 0.5  # the crescent is a disc of radius 1 without the disc of radius 0.8 around this point of the x axis
_BITE = 0.8
_ARM = 0.3  # half the width of the cross's arms
_WAIST, _SLOPE = 0.12, 0.9  # half the hourglass's width in the middle, and how much wider it gets
_HOLE = 0.5  # the ring's inner radius
_TIPS = [(-math.sin(k * math.tau / 5), math.cos(k * math.tau / 5)) for k in range(5)]
_CORNERS = [(-math.sin(k * math.tau / 3), math.cos(k * math.tau / 3)) for k in range(3)]


def draw(
    count: int, *, seed: int, scale: float | None = None, size: int = 32
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images, one shape in each.

    The first images of a longer draw are those of a shorter one. Another `scale` does not change class, clutter,
    colour, rotation or noise, and moves the object only as far as needed to keep it inside. Another `size` shows the
    same scenes with other noise.

    Args:
        count: Number of images.
        seed: Random seed, at least 0.
        scale: Extent of every object, the longer side of its upright bounding box as a fraction of the image, above 0
            and at most 1; None draws each uniformly from `MIN_SCALE` to `MAX_SCALE`.
        size: Width and height in pixels, at least 8.

    Returns:
        8-bit RGB images [count, size, size, 3], and labels [count], indices of `CLASS_NAMES`.

    Raises:
        ValueError: If an argument is out of range.
    """
    if count < 1:
        raise ValueError(f'count must be at least 1, got {count}.')
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}.')
    if scale is not None and not 0 < scale <= 1:
        raise ValueError(f'scale must be above 0 and at most 1, or None, got {scale}.')
    if size < 8:
        raise ValueError(f'size must be at least 8 pixels, got {size}.')
    generator = np.random.PCG64(seed)
    stream, noise_stream = np.random.RandomState(generator), np.random.RandomState(generator.jumped())
    chunks = [_draw_chunk(stream, noise_stream, scale, size) for _ in range(math.ceil(count / _CHUNK))]
    images, labels = (np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))
    return images, labels


def _draw_chunk(
    stream: np.random.RandomState, noise_stream: np.random.RandomState, scale: float | None, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `_CHUNK` images; the numbers that the first stream gives do not depend on `scale` or `size`."""
    labels = (stream.random_sample(_CHUNK) * len(CLASS_NAMES)).astype(np.int64)
    angles = stream.random_sample(_CHUNK) * math.tau
    scales = MIN_SCALE + (MAX_SCALE - MIN_SCALE) * stream.random_sample(_CHUNK)
    places = stream.random_sample((_CHUNK, 2))
    background = _uniform(stream, 0, 1, 3)  # [B, 1, 1, 3]
    # each channel of the object is at least 0.3 away from the background's
    colour = (background + _uniform(stream, 0.3, 0.7, 3)) % 1
    texture = _texture(stream, size)[..., None] * _uniform(stream, -0.3, 0.3, 3)
    noise = np.frombuffer(noise_stream.bytes(_CHUNK * size * size * 3), np.uint8).reshape(_CHUNK, size, size, 3)
    strength = _uniform(stream, 0, 0.15)  # the largest deviation

    cover = _cover(labels, angles, scales, places, scale, size)[..., None]  # [B, size, size, 1]
    canvas = background + texture
    canvas += cover * (colour - canvas)
    canvas += (noise.astype(np.float32) - 127.5) * (strength / 127.5)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), labels


def _uniform(stream: np.random.RandomState, low: float, high: float, channels: int = 1) -> Floats:
    """Uniform random numbers [B, 1, 1, channels]."""
    return (low + (high - low) * stream.random_sample((_CHUNK, 1, 1, channels))).astype(np.float32)


def _texture(stream: np.random.RandomState, size: int) -> Floats:
    """Clutter from -1 to 1 [B, size, size]: value noise of several grains, and parallel stripes, mixed differently."""
    shares = stream.random_sample((len(_TEXTURE_CELLS) + 1, _CHUNK, 1, 1)) + 0.05
    shares = (shares / shares.sum(axis=0)).astype(np.float32)
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size  # centres, 0 to 1

    angle = stream.random_sample((_CHUNK, 1, 1)) * math.tau
    waves = 2 + 6 * stream.random_sample((_CHUNK, 1, 1))  # across the frame
    phase = (
        (waves * np.cos(angle)).astype(np.float32) * pixels
        + (waves * np.sin(angle)).astype(np.float32) * pixels[:, None]
        + stream.random_sample((_CHUNK, 1, 1)).astype(np.float32)
    )
    texture: Floats = shares[-1] * (4 * np.abs(phase - np.floor(phase) - 0.5) - 1)
    for cells, share in zip(_TEXTURE_CELLS, shares[:-1], strict=True):
        knots = np.frombuffer(stream.bytes(_CHUNK * (cells + 1) ** 2), np.uint8).reshape(_CHUNK, cells + 1, cells + 1)
        cell = np.floor(pixels * cells).astype(np.int64)
        inside = pixels * cells - cell.astype(np.float32)
        values = (knots.astype(np.float32) - 127.5) * (share / 127.5)
        rows = values[:, cell] + (values[:, cell + 1] - values[:, cell]) * inside[:, None]
        texture += rows[..., cell] + (rows[..., cell + 1] - rows[..., cell]) * inside
    return texture


def _cover(
    labels: NDArray[np.int64],
    angles: NDArray[np.float64],
    scales: NDArray[np.float64],
    places: NDArray[np.float64],
    scale: float | None,
    size: int,
) -> Floats:
    """Coverage of each pixel by the objects, 0 to 1, [B, size, size].

    Classes, rotations in radians, and extents are [B], the places between the left and right and the top and bottom
    borders [B, 2], 0 to 1; `scale` is the extent of all objects instead.
    """
    cos, sin = np.cos(angles), np.sin(angles)
    outline = _OUTLINES[labels]  # [B, K, 2]
    right = cos[:, None] * outline[..., 0] - sin[:, None] * outline[..., 1]
    below = sin[:, None] * outline[..., 0] + cos[:, None] * outline[..., 1]
    rotated = np.stack([right, below], axis=-1)
    low, high = rotated.min(axis=1), rotated.max(axis=1)  # [B, 2]
    shape = (high - low) / (high - low).max(axis=1, keepdims=True)  # the bounding box, its longer side 1
    room = 1 - scales[:, None] * shape
    centre = scales[:, None] * shape / 2 + places * room
    if scale is not None:
        scales = np.full_like(scales, scale)
        centre = np.clip(centre, scale * shape / 2, 1 - scale * shape / 2)
    unit = scales * size / (high - low).max(axis=1)  # pixels
    origin = centre * size - unit[:, None] * (low + high) / 2

    pixels = np.arange(size, dtype=np.float32) + 0.5
    across = (pixels - origin[:, :1].astype(np.float32))[:, None, :]
    down = (pixels - origin[:, 1:].astype(np.float32))[:, :, None]
    cos_unit, sin_unit = ((f / unit).astype(np.float32)[:, None, None] for f in (cos, sin))
    x, y = cos_unit * across + sin_unit * down, cos_unit * down - sin_unit * across  # [B, size, size]
    pixel = unit.astype(np.float32)[:, None, None]
    cover = np.empty_like(x)
    for label, distance in enumerate(_DISTANCES):
        chosen = np.flatnonzero(labels == label)
        cover[chosen] = np.clip(0.5 - pixel[chosen] * distance(x[chosen], y[chosen]), 0, 1)
    return cover


# Each takes coordinates of any one shape, in a unit of the object's own, and returns signed distances to its border:
# negative inside, exact near the border except at corners.


def _circle(x: Floats, y: Floats) -> Floats:
    return np.sqrt(x * x + y * y) - 1


def _crescent(x: Floats, y: Floats) -> Floats:
    return np.maximum(_circle(x, y), _BITE - np.sqrt((x - _FAR_SIDE) * (x - _FAR_SIDE) + y * y))


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - _ARM)


def _hourglass(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(y - 1, (x - _SLOPE * y - _WAIST) / math.hypot(1, _SLOPE))


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.sqrt(x * x + y * y) - (1 + _HOLE) / 2) - (1 - _HOLE) / 2


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 1


def _star(x: Floats, y: Floats) -> Floats:
    # a pentagram is where at most one of its five lines is crossed: the second largest distance counts
    first = second = np.full_like(x, -np.inf)
    for tip_x, tip_y in _TIPS:
        beyond = tip_x * x + tip_y * y
        second = np.maximum(second, np.minimum(first, beyond))
        first = np.maximum(first, beyond)
    # and the circle around it, or the tips would be blurred far beyond it
    return np.maximum(second - math.cos(math.tau / 5), _circle(x, y))


def _triangle(x: Floats, y: Floats) -> Floats:
    beyond = [-corner_x * x - corner_y * y for corner_x, corner_y in _CORNERS]  # the sides, opposite to the corners
    return np.maximum(np.maximum(beyond[0], beyond[1]), beyond[2]) - 0.5


_DISTANCES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    _circle,
    _crescent,
    _cross,
    _hourglass,
    _ring,
    _square,
    _star,
    _triangle,
)


def _arc(start: float, end: float) -> list[tuple[float, float]]:
    """Points of the unit circle from one angle to another, both in radians."""
    steps = _OUTLINE_POINTS - 1
    angles = [start + (end - start) * k / steps for k in range(_OUTLINE_POINTS)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _outlines() -> NDArray[np.float64]:
    """For each class, points [K, 2] that have the bounding box of the shape at any rotation."""
    # where the crescent's two circles meet
    horn = math.acos((1 + _FAR_SIDE**2 - _BITE**2) / (2 * _FAR_SIDE))
    wide = _SLOPE + _WAIST
    signs = ((-1, -1), (-1, 1), (1, -1), (1, 1))
    points: dict[str, list[tuple[float, float]]] = dict(
        circle=_arc(0, math.tau),
        crescent=_arc(horn, math.tau - horn),
        cross=[(sx * a, sy * b) for sx, sy in signs for a, b in ((1, _ARM), (_ARM, 1))],
        hourglass=[(sx * wide, sy) for sx, sy in signs],
        ring=_arc(0, math.tau),
        square=list(signs),
        star=_TIPS,
        triangle=_CORNERS,
    )
    repeated = [(points[name] * _OUTLINE_POINTS)[:_OUTLINE_POINTS] for name in CLASS_NAMES]
    return np.array(repeated, dtype=np.float64)


_OUTLINES = _outlines()
