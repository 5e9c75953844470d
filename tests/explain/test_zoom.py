"""Crops of the center, and invalid images and scales."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_sk.explain import Zoom, zoom_in


def numbered(width, height):
    """An image whose pixels are their own coordinates."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ('scale', 'columns', 'rows'),
    [(1.0, (0, 59), (0, 39)), (1.5, (10, 49), (6, 32)), (2.0, (15, 44), (10, 29)), (5, (24, 35), (16, 23))],
)
def test_center_is_cropped(scale, columns, rows):
    pixels = np.asarray(zoom_in(numbered(60, 40), scale))
    assert (pixels[0, 0, 0], pixels[0, -1, 0]) == columns
    assert (pixels[0, 0, 1], pixels[-1, 0, 1]) == rows
    assert pixels.shape == (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1, 3)


@pytest.mark.parametrize('scale', [0, -1, 0.99, float('nan'), float('inf')])
def test_invalid_scale(scale):
    with pytest.raises(ValueError, match=r'Invalid scale .*: expected at least 1'):
        zoom_in(numbered(60, 40), scale)


def test_too_large_scale():
    with pytest.raises(ValueError, match=r'A scale of 6 leaves 10x7 of the 60x40 pixels: take 5 at most'):
        zoom_in(numbered(60, 40), 6)
    with pytest.raises(ValueError, match='take images of at least 8 pixels'):
        zoom_in(numbered(60, 4), 1)


@pytest.mark.parametrize(
    ('scales', 'message'), [([], 'Invalid scales none'), ([1, 2, 1.0], 'Invalid scales 1, 2, 1: .* each once')]
)
def test_missing_and_repeated_scales(scales, message):
    with pytest.raises(ValueError, match=message):
        Zoom(timm.create_model('sknet_atto'), scales)


@pytest.mark.parametrize('channels', [1, 3])
def test_preprocessing_of_the_checkpoint(channels):
    zoom = Zoom(timm.create_model('sknet_atto', in_chans=channels), (1, 2))
    image = numbered(64, 64)
    pixels = zoom(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, channels, 32, 32)
    assert len(zoom.mean) == channels
    middle = np.asarray(image.convert('L' if channels == 1 else 'RGB').crop((16, 16, 48, 48)))
    assert np.array_equal(pixels[1].permute(1, 2, 0).numpy(), middle.reshape(32, 32, channels))


def test_small_images():
    zoom = Zoom(timm.create_model('sknet_atto'))
    zoom.require_large_enough(numbered(32, 32), 'a.png')
    with pytest.raises(ValueError, match=r"^a.png: 40x31 pixels are fewer than the model's input of 32x32"):
        zoom.require_large_enough(numbered(40, 31), 'a.png')
    with pytest.raises(ValueError, match=r'^b.png: A scale of 5 leaves 6x6 of the 32x32 pixels: take 4 at most'):
        Zoom(timm.create_model('sknet_atto'), (1, 5)).require_large_enough(numbered(32, 32), 'b.png')


def test_transparent_pixels_become_white():
    model = timm.create_model('sknet_atto.shapes', pretrained=True).eval()
    clear = Image.new('RGBA', (32, 32), (0, 0, 0, 0))
    assert (Zoom(model, [1.0])(clear) == 255).all()
