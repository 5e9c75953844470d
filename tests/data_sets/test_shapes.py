"""Synthetic shapes: the same bytes for a seed, and the position and extent of the objects."""

import hashlib

import numpy as np
import pytest

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.data.shapes import CLASS_NAMES, TEST_COUNT, TEST_SEED, draw

SIZE = 96
SPECK = 0.001  # an extent too small to be seen


def boxes(count, *, seed, scale):
    """Left, top, right and bottom [N, 4] of the objects as shares of the frame, and their areas [N] in pixels."""
    objects = np.any(
        draw(count, seed=seed, scale=scale, size=SIZE)[0] != draw(count, seed=seed, scale=SPECK, size=SIZE)[0], -1
    )
    found = []
    for mask in objects:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(found) / SIZE, objects.sum((1, 2))


def longer_sides(box):
    return np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])


def test_draw_golden_bytes():
    images, labels = draw(16, seed=0)
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((16, 32, 32, 3), np.uint8, (16,), np.int64)
    assert [CLASS_NAMES[label] for label in labels[:4]] == ['square', 'cross', 'circle', 'circle']
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == 'b1ded59dff2d41b1284b9071916e3639094ebc3279ca00e1ce0720d048a5b434'
    )
    again, labels_again = draw(16, seed=0)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)


def test_draw_another_seed():
    (images, labels), (others, other_labels) = draw(64, seed=0), draw(64, seed=1)
    assert not np.array_equal(labels, other_labels)
    assert not any(np.array_equal(*pair) for pair in zip(images, others, strict=True))


def test_draw_prefix():
    (short, short_labels), (long, long_labels) = draw(70, seed=3), draw(130, seed=3)
    assert np.array_equal(short, long[:70])
    assert np.array_equal(short_labels, long_labels[:70])


def test_test_set_is_balanced():
    images, labels = draw(TEST_COUNT, seed=TEST_SEED)
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    assert len(images) == counts.sum() == 2000
    assert len(counts) == 8
    assert 210 <= counts.min() <= counts.max() <= 290


def test_classes_of_checkpoint():
    assert CHECKPOINTS['sknet_atto.shapes'].label_names == CLASS_NAMES


@pytest.mark.parametrize('scale', [0.3, 0.6, 0.9, 1.0])
def test_extent_at_scale(scale):
    box, _ = boxes(200, seed=5, scale=scale)
    grown = SIZE * (longer_sides(box) - scale)  # borders are blurred over a pixel on either side
    limits = (-0.5, 2.7) if scale < 1 else (-0.1, 0)
    assert limits[0] <= grown.min() + 1e-9
    assert grown.max() <= limits[1] + 1e-9


@pytest.mark.deep
def test_random_extents():
    sides = longer_sides(boxes(400, seed=6, scale=None)[0])
    assert 0.28 <= sides.min() <= 0.33
    assert 0.88 <= sides.max() <= 0.93
    assert sides.mean() == pytest.approx(0.61, abs=0.03)  # a pixel of blur is 0.01
    assert sides.std() == pytest.approx(0.6 / 12**0.5, abs=0.02)


@pytest.mark.deep
def test_random_positions():
    box, _ = boxes(400, seed=7, scale=None)
    assert (box[:, :2].min(0) < 0.02).all()
    assert (box[:, 2:].max(0) > 0.98).all()
    assert (box[:, :2] + box[:, 2:]).mean(0) / 2 == pytest.approx(0.5, abs=0.02)


@pytest.mark.deep
def test_scale_changes_extent_only():
    (small, small_labels), (large, large_labels), (clutter, _) = (
        draw(200, seed=8, scale=scale, size=SIZE) for scale in (0.3, 0.5, SPECK)
    )
    assert np.array_equal(small_labels, large_labels)
    small_box, large_box = (boxes(200, seed=8, scale=scale)[0] for scale in (0.3, 0.5))
    fits = (large_box[:, :2] > 2 / SIZE).all(1) & (large_box[:, 2:] < 1 - 2 / SIZE).all(1)
    moved = np.abs(small_box[:, :2] + small_box[:, 2:] - large_box[:, :2] - large_box[:, 2:]).max(1) / 2
    assert fits.sum() > 80
    assert moved[fits].max() <= 2 / SIZE
    # well inside both objects: the same colours under the same noise, whatever the scale
    solid = fits & np.isin(small_labels, [CLASS_NAMES.index(name) for name in ('circle', 'square', 'star')])
    assert solid.sum() > 20
    middles = ((small_box[:, :2] + small_box[:, 2:]) / 2 * SIZE).round().astype(int)
    for index in np.flatnonzero(solid):
        x, y = middles[index]
        assert np.array_equal(small[index, y, x], large[index, y, x])
        assert not np.array_equal(small[index, y, x], clutter[index, y, x])


def test_size_shows_same_scenes():
    (small, small_labels), (large, large_labels) = draw(120, seed=8), draw(120, seed=8, size=64)
    assert np.array_equal(small_labels, large_labels)
    halved = large.reshape(120, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 12


@pytest.mark.deep
def test_areas():
    _, areas = boxes(400, seed=9, scale=0.9)
    labels = draw(400, seed=9)[1]
    mean = {name: areas[labels == label].mean() / (0.9 * SIZE) ** 2 for label, name in enumerate(CLASS_NAMES)}
    assert mean['circle'] == pytest.approx(np.pi / 4, abs=0.03)
    assert mean['ring'] == pytest.approx(np.pi / 4 * (1 - 0.5**2), abs=0.05)
    square = areas[labels == CLASS_NAMES.index('square')] / (0.9 * SIZE) ** 2
    assert 0.5 <= square.min() < 0.56  # on its tip
    assert 0.9 < square.max() <= 1.04  # upright


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(count=0), 'count must be at least 1, got 0'),
        (dict(seed=-1), 'seed must not be negative, got -1'),
        (dict(scale=0), 'scale must be above 0 and at most 1, or None, got 0'),
        (dict(scale=30), 'or None, got 30'),
        (dict(scale=float('nan')), 'got nan'),
        (dict(size=4), 'size must be at least 8 pixels, got 4'),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(**{'count': 1, 'seed': 0, **arguments})
