"""Reading image files: every mode becomes 8-bit RGB, every broken file an error."""

import numpy as np
import pytest
from PIL import Image

from timm_sk.data.images import find_images, read_image
from timm_sk.errors import UnreadableImageError

# A 24x16 image whose left half is dark and right half bright, in red.
RGB = np.zeros((16, 24, 3), np.uint8)
RGB[:, :12] = (40, 0, 0)
RGB[:, 12:] = (220, 0, 0)
GREY = RGB[..., 0]


def mean_halves(image: Image.Image) -> list[list[int]]:
    pixels = np.asarray(image)
    assert image.mode == 'RGB'
    return [
        pixels[:, : pixels.shape[1] // 2].mean((0, 1)).round().tolist(),
        pixels[:, -10:].mean((0, 1)).round().tolist(),
    ]


@pytest.mark.parametrize('ending', ['png', 'webp', 'bmp', 'tiff', 'gif'])
def test_lossless_colours(tmp_path, ending):
    Image.fromarray(RGB).save(tmp_path / f'x.{ending}', **(dict(lossless=True) if ending == 'webp' else {}))
    assert np.array_equal(read_image(tmp_path / f'x.{ending}'), RGB)


def test_jpeg(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'x.jpg', quality=100, subsampling=0)
    assert np.abs(np.asarray(read_image(tmp_path / 'x.jpg')).astype(int) - RGB).max() <= 4


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'LA'])
def test_greys_and_palettes(tmp_path, mode):
    source = Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert(mode)
    source.save(tmp_path / 'x.png')
    assert mean_halves(read_image(tmp_path / 'x.png')) == [[0, 0, 0], [255, 255, 255]]


def test_16_bit_grey(tmp_path):
    for ending in ('png', 'tiff'):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f'x.{ending}')
        assert mean_halves(read_image(tmp_path / f'x.{ending}')) == [[40] * 3, [220] * 3]


def test_transparency(tmp_path):
    alpha = np.where(GREY > 100, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / 'x.png')
    assert mean_halves(read_image(tmp_path / 'x.png')) == [[40, 0, 0], [255, 255, 255]]
    palette = Image.fromarray(GREY).convert('P')
    palette.save(tmp_path / 'p.png', transparency=int(np.asarray(palette)[0, -1]))
    assert mean_halves(read_image(tmp_path / 'p.png')) == [[40] * 3, [255] * 3]


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(RGB).convert('CMYK').save(tmp_path / 'x.jpg', quality=100)
    assert np.allclose(mean_halves(read_image(tmp_path / 'x.jpg')), [[40, 0, 0], [220, 0, 0]], atol=8)


TURNS = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: np.rot90,
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 3),
}


@pytest.mark.parametrize('orientation', TURNS)
@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_exif_orientation(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = RGB.copy()
    upright[:8] //= 2  # so that top and bottom differ too
    turned = np.ascontiguousarray(TURNS[orientation](upright))
    Image.fromarray(turned).save(tmp_path / f'x.{ending}', exif=exif, quality=100, subsampling=0)
    read = np.asarray(read_image(tmp_path / f'x.{ending}')).astype(int)
    assert read.shape == upright.shape
    assert np.abs(read - upright).mean() <= (0 if ending == 'png' else 2)


def write_broken(folder, kind):
    path = folder / f'{kind}.png'
    if kind == 'empty':
        path.touch()
    elif kind == 'text':
        path.write_text('not an image')
    elif kind == 'folder':
        path.mkdir()
    elif kind in ('truncated', 'garbled'):
        Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)).save(path)
        content = bytearray(path.read_bytes())
        if kind == 'garbled':
            content[60:300] = bytes(240)
        path.write_bytes(content if kind == 'garbled' else content[: len(content) // 2])
    elif kind == 'float':
        path = folder / 'float.tiff'
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif kind == 'bomb':
        Image.new('1', (20000, 20000)).save(path)
    elif kind == 'avif':
        path = folder / 'x.avif'
        Image.fromarray(RGB).save(path)
        header, data = path.read_bytes().split(b'mdat')
        path.write_bytes(header + b'mdat' + b'\xff' * len(data))
    return path


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'no such file'),
        ('empty', 'the file is empty'),
        ('text', 'not an image that can be read'),
        ('folder', 'a folder without images'),
        ('truncated', 'cannot be decoded: .*truncated'),
        ('garbled', 'cannot be decoded'),
        ('avif', 'cannot be decoded: '),  # Pillow raises a RuntimeError
        ('float', 'cannot be decoded: floating-point pixels'),
        ('bomb', 'cannot be decoded: .*decompression bomb'),
    ],
)
def test_broken_files(tmp_path, kind, message):
    path = write_broken(tmp_path, kind)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert '\n' not in str(caught.value)


def test_find_images(tmp_path, caplog):
    for name in ('b.png', 'a.JPG', 'notes.txt', 'paper.pdf', 'film.mpg', 'deep/er/c.webp', 'deep/[1].png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'none').mkdir()
    (tmp_path / 'deep' / 'self').symlink_to('.', target_is_directory=True)

    def found(*arguments):
        return [p.relative_to(tmp_path).as_posix() for p in find_images(str(tmp_path / a) for a in arguments)]

    for name in ('._a.JPG', 'deep/._c.webp', '.cache/x.png', '__MACOSX/a.JPG'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('not an image')
    assert found('') == ['a.JPG', 'b.png', 'deep/[1].png', 'deep/er/c.webp']
    (tmp_path / 'deep' / 'self').unlink()
    (line,) = caplog.messages
    assert line.endswith('3 files left out (not images): film.mpg; notes.txt; paper.pdf')
    assert found('.cache/x.png') == ['.cache/x.png']
    assert found('*.png', 'notes.txt') == ['b.png', 'notes.txt']
    assert found('**/*.webp') == ['deep/er/c.webp']
    assert found('deep/[1].png') == ['deep/[1].png']
    assert found('d*') == ['deep/[1].png', 'deep/er/c.webp']
    assert found('none', 'gone.png', '*.gif') == ['none', 'gone.png', '*.gif']


def write_bands(path, pixels, orientation=1):
    """An array [H, W, C] as a file with all its channels."""
    if path.suffix == '.npy':
        np.save(path, pixels)
    elif path.suffix == '.tif':
        tifffile = pytest.importorskip('tifffile')
        tifffile.imwrite(
            path, pixels, photometric='minisblack', planarconfig='contig', extratags=[(274, 'H', 1, orientation, True)]
        )
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(path, exif=exif)
    return path


BANDS = np.random.RandomState(0).randint(0, 256, (6, 9, 13)).astype(np.uint8)


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('ending', 'channels', 'dtype'),
    [
        *(('png', 4, np.uint8), ('png', 2, np.uint8), ('tif', 4, np.uint8), ('tif', 5, np.uint8)),
        *(('tif', 13, np.uint16), ('npy', 13, np.uint16), ('npy', 5, np.uint8)),
    ],
)
def test_channels(ending, channels, dtype, tmp_path):
    pixels = np.ascontiguousarray(BANDS[..., :channels])
    path = write_bands(tmp_path / f'x.{ending}', pixels.astype(dtype) * (257 if dtype == np.uint16 else 1))
    assert np.array_equal(np.dstack(read_image(path, channels)), pixels)
    if ending == 'npy':
        np.save(path, np.moveaxis(pixels, 2, 0))
        assert np.array_equal(np.dstack(read_image(path, channels)), pixels)
    else:
        write_bands(path, pixels, orientation=6)
        assert np.array_equal(np.dstack(read_image(path, channels)), np.rot90(pixels, -1))
    message = rf'^{path}: .*its shape is .*, the model takes \[height, width, 7\]\.$'
    with pytest.raises(UnreadableImageError, match=message):
        read_image(path, 7)


def test_arrays_as_rgb_and_grey(tmp_path):
    for pixels in (GREY, GREY[..., None], GREY[None], RGB, RGB.astype(np.uint16) * 257):
        np.save(tmp_path / 'x.npy', pixels)
        expected = Image.fromarray(RGB if pixels.shape[-1] == 3 else GREY).convert('RGB')
        assert np.array_equal(read_image(tmp_path / 'x.npy'), expected)
        assert np.array_equal(read_image(tmp_path / 'x.npy', 1), expected.convert('L'))


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.zeros((4, 4, 4), np.float32), 'cannot be decoded: float32 pixels have no fixed range'),
        (np.zeros((4, 4, 4), np.int16), 'cannot be decoded: int16 pixels have no fixed range'),
        (np.zeros((4, 0, 4), np.uint8), r'its shape is \[4, 0, 4\]'),
        (np.zeros(4, np.uint8), r'its shape is \[4\]'),
        (np.array([None]), 'cannot be decoded: Object arrays cannot be loaded'),
        (b'\x93NUMPY\x01\x00', 'cannot be decoded'),
    ],
)
def test_broken_arrays(array, message, tmp_path):
    np.save(tmp_path / 'x.npy', array, allow_pickle=True)
    if isinstance(array, bytes):
        (tmp_path / 'x.npy').write_bytes(array)
    with pytest.raises(UnreadableImageError, match=f'^{tmp_path}/x.npy: .*{message}') as caught:
        read_image(tmp_path / 'x.npy', 4)
    assert '\n' not in str(caught.value)
