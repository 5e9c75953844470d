"""Crops of the middle, and which pictures and scales are refused."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_sk.explain import Enlarging, enlarge


def numbered(width, height):
    """A picture whose pixels tell their place."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ('scale', 'columns', 'rows'),
    [(1.0, (0, 59), (0, 39)), (1.5, (10, 49), (6, 32)), (2.0, (15, 44), (10, 29)), (5, (24, 35), (16, 23))],
)
def test_the_middle_is_cropped_at_its_own_resolution(scale, columns, rows):
    pixels = np.asarray(enlarge(numbered(60, 40), scale))
    assert (pixels[0, 0, 0], pixels[0, -1, 0]) == columns
    assert (pixels[0, 0, 1], pixels[-1, 0, 1]) == rows
    assert pixels.shape == (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1, 3)


@pytest.mark.parametrize('scale', [0, -1, 0.99, float('nan'), float('inf')])
def test_scales_past_the_picture_are_refused(scale):
    with pytest.raises(ValueError, match=r'A scale is 1.* or more, got .*reach past the picture'):
        enlarge(numbered(60, 40), scale)


def test_scales_that_leave_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match=r'A scale of 6 leaves 10x7 of the 60x40 pixels: take 5 at most'):
        enlarge(numbered(60, 40), 6)
    with pytest.raises(ValueError, match='take pictures of 8 pixels or more'):
        enlarge(numbered(60, 4), 1)


@pytest.mark.parametrize(('scales', 'message'), [([], 'got none'), ([1, 2, 1.0], 'each once, got 1, 2, 1')])
def test_no_scale_and_repeated_scales_are_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        Enlarging(timm.create_model('sknet_atto'), scales)


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_are_prepared_as_the_checkpoint_says(channels):
    enlarging = Enlarging(timm.create_model('sknet_atto', in_chans=channels), (1, 2))
    picture = numbered(64, 64)
    pixels = enlarging(picture)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, channels, 32, 32)
    assert len(enlarging.mean) == channels
    middle = np.asarray(picture.convert('L' if channels == 1 else 'RGB').crop((16, 16, 48, 48)))
    assert np.array_equal(pixels[1].permute(1, 2, 0).numpy(), middle.reshape(32, 32, channels))


def test_pictures_smaller_than_the_input_are_refused_by_name():
    enlarging = Enlarging(timm.create_model('sknet_atto'))
    enlarging.require_large_enough(numbered(32, 32), 'a.png')
    with pytest.raises(ValueError, match=r"^a.png: 40x31 pixels are fewer than the model's input of 32x32"):
        enlarging.require_large_enough(numbered(40, 31), 'a.png')
    with pytest.raises(ValueError, match=r'^b.png: A scale of 5 leaves 6x6 of the 32x32 pixels: take 4 at most'):
        Enlarging(timm.create_model('sknet_atto'), (1, 5)).require_large_enough(numbered(32, 32), 'b.png')


def test_what_is_transparent_is_white_as_when_files_are_read():
    model = timm.create_model('sknet_atto.shapes', pretrained=True).eval()
    clear = Image.new('RGBA', (32, 32), (0, 0, 0, 0))
    assert (Enlarging(model, [1.0])(clear) == 255).all()
