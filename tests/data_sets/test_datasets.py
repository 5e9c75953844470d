"""Opening data sets: every image with its label and its name, or an error in one line."""

import os
import sys
import tarfile

import numpy as np
import pytest
from drawn_data import (
    CLASSES,
    drawn,
    encoded,
    in_folder,
    in_parquet,
    in_tar,
    in_torchvision_folder,
    write_folder,
    write_mnist,
    write_parquet,
    write_shards,
    write_tar,
)
from PIL import Image

from timm_sk.data import ImageDataset, ImageStream, SyntheticImages, UnreadableSampleError, open_dataset, with_channels
from timm_sk.data.images import read_image
from timm_sk.data.shapes import CLASS_NAMES, draw

EACH = 3


def write_difficult(folder):
    """Images of modes, depths and orientations that differ between ways to read them."""
    folder.mkdir(parents=True)
    ramp = np.arange(24 * 16, dtype=np.uint16).reshape(16, 24)
    colour = np.dstack([ramp % 251, ramp % 83, 255 - ramp % 199]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.fromarray((ramp % 256).astype(np.uint8)).convert('P')
    Image.fromarray(ramp * 150).save(folder / 'deep.png')
    Image.fromarray(colour).save(folder / 'turned.png', exif=exif)
    Image.fromarray(colour).convert('CMYK').save(folder / 'ink.jpg')
    Image.fromarray(np.dstack([colour, 255 - ramp % 256]).astype(np.uint8)).save(folder / 'clear.webp', lossless=True)
    palette.save(folder / 'palette.png', transparency=3)
    Image.fromarray(ramp > 90).save(folder / 'bit.png')
    np.save(folder / 'array.npy', colour)
    return sorted(folder.iterdir())


@pytest.mark.parametrize('channels', [3, 1])
def test_one_way_to_read(channels, tmp_path):
    """The same pixels from folders, tars, shards and tables as `read_image` gives."""
    files = write_difficult(tmp_path / 'data' / 'class')
    expected = sorted(read_image(file, channels).tobytes() for file in files)
    assert len({*expected}) == len(files)
    with tarfile.open(tmp_path / 'data.tar', 'w') as archive:
        archive.add(tmp_path / 'data', 'data')
    shards = write_shards(tmp_path / 'shards', dict(train=[[(file, 0) for file in files]]))
    datasets = [dict(data=str(tmp_path / 'data')), dict(data=str(tmp_path / 'data.tar')), dict(data=f'wds/{shards}')]
    datasets.append(dict(data='torch/folder', data_dir=str(tmp_path / 'data')))
    for settings in datasets:
        images = with_channels(open_dataset(**settings, split='train'), channels)
        found = images if isinstance(images, ImageStream) else map(images.read, range(len(images)))
        assert sorted(image.tobytes() for image, *_ in found) == expected, settings
    contents = [file.read_bytes() for file in files if file.suffix != '.npy']
    table = write_parquet(tmp_path / 'table', dict(train=dict(one=contents)))
    for prefix in ('hfds', 'hfids'):
        settings = dict(data=f'{prefix}/{table}', data_dir=str(tmp_path / 'cache'), num_samples=len(files) - 1)
        images = with_channels(open_dataset(**settings, split='train'), channels)
        found = images if isinstance(images, ImageStream) else map(images.read, range(len(images)))
        without = {read_image(file, channels).tobytes() for file in files if file.suffix != '.npy'}
        assert {image.tobytes() for image, *_ in found} == without, prefix


@pytest.mark.parametrize(
    ('kind', 'part'),
    [(in_folder, ''), (in_folder, 'train'), (in_tar, ''), (in_torchvision_folder, ''), (in_parquet, '')],
)
def test_images_and_labels(kind, part, tmp_path):
    expected = drawn(EACH)
    others = {'val': drawn(1, seed=9)} if part else {}
    images = open_dataset(**kind(tmp_path, {part: expected} | others), split='train')
    assert isinstance(images, ImageDataset)
    assert images.class_names() == [*CLASSES]
    found = [images.read(index) for index in range(len(images))]
    assert images.targets() == [label for _, label in found] == [0] * EACH + [1] * EACH + [2] * EACH
    for label, name in enumerate(CLASSES):
        assert {image.tobytes() for image, at in found if at == label} == {p.tobytes() for p in expected[name]}
    assert {image.mode for image, _ in found} == {'RGB'}
    few = images.subset([7, 0, 4]).subset([0, 2])
    assert (len(few), few.targets(), few.class_names()) == (2, [2, 1], [*CLASSES])
    assert few.read(1)[0].tobytes() == found[4][0].tobytes()
    assert few.name(1) == images.name(4)


def test_names(tmp_path):
    folder = tmp_path / 'data'
    for settings in (in_folder(tmp_path, {'': drawn(2)}), dict(data='torch/folder', data_dir=str(folder))):
        assert open_dataset(**settings, split='train').name(3) == str(folder / 'ring' / '001.png')
    assert open_dataset(**in_tar(folder, {'': drawn(2)}), split='train').name(3) == 'images/ring/001.png'
    assert open_dataset(**in_parquet(tmp_path, {'': drawn(2)}), split='train').name(3) == 'image 3'


def test_torchvision(tmp_path):
    train, test = [drawn(6, seed=seed, size=28)['star'] for seed in (0, 1)]
    write_mnist(tmp_path, {'train': train, 't10k': test})
    for split, expected in (('train', train), ('validation', test)):
        images = with_channels(open_dataset('torch/mnist', split=split, data_dir=str(tmp_path)), 1)
        assert images.targets() == [0, 1, 2, 3, 4, 5]
        assert images.class_names()[:2] == ['0 - zero', '1 - one']
        for index, image in enumerate(expected):
            found, label = images.read(index)
            assert (found.tobytes(), label) == (image.convert('L').tobytes(), index)


@pytest.mark.parametrize('kind', [in_folder, in_tar, in_parquet])
@pytest.mark.parametrize('in_file', [False, True])
def test_class_map(kind, in_file, tmp_path):
    class_map = dict(star=0, circle=1, ring=2)
    if in_file:
        (tmp_path / 'classes.txt').write_text('star\ncircle\nring\n')
        class_map = str(tmp_path / 'classes.txt')
    images = with_channels(open_dataset(**kind(tmp_path, {'': drawn(2)}), split='train', class_map=class_map), 1)
    assert images.class_names() == ['star', 'circle', 'ring']
    assert images.read(0)[0].tobytes() == drawn(2)['circle'][0].convert('L').tobytes()
    assert images.targets() == [1, 1, 2, 2, 0, 0]
    assert [images.read(index)[1] for index in (0, 2, 4)] == [1, 2, 0]


@pytest.mark.parametrize('class_map', [None, {0: 1, 1: 0, 2: 2}])
def test_shards(class_map, tmp_path):
    pairs = [(image, label) for label, members in enumerate(drawn(4).values()) for image in members]
    folder = write_shards(tmp_path / 'shards', dict(train=[pairs[:5], pairs[5:]], validation=[pairs[::2]]))
    stream = open_dataset(f'wds/{folder}', split='validation', class_map=class_map)
    assert isinstance(stream, ImageStream)
    assert len(stream) == 6
    expected = [(image.tobytes(), (class_map or {}).get(label, label)) for image, label in pairs[::2]]
    for _ in range(2):
        assert [(image.tobytes(), label) for image, label, _ in stream] == expected
    assert stream.class_names() == (['1', '0', '2'] if class_map else None)
    assert len(open_dataset(f'wds/{folder}', split='train', is_training=True)) == 12


def test_unreadable_images_in_shards(tmp_path, caplog):
    """The second of two shards has a truncated image, and its last image has no label."""
    pairs = [(image, label) for label, members in enumerate(drawn(2).values()) for image in members]
    truncated = encoded(pairs[3][0].resize((64, 64)), 'JPEG')[:700]
    shards = [pairs[:3], [(truncated, 1), pairs[4], (pairs[5][0], None)]]
    folder = write_shards(tmp_path / 'shards', dict(validation=shards))
    shard = folder / 'validation-0001.tar'
    found = [*open_dataset(f'wds/{folder}', split='validation')]
    assert [label for _, label, _ in found] == [0, 0, 1, 2, -1]
    assert [image is None for image, *_ in found] == [False] * 4 + [True]
    truncated, unlabelled = [line for *_, bad in found for line in bad]
    assert truncated.startswith(f'{shard}: 0001-0000: cannot be decoded: image file is truncated')
    assert unlabelled == f'{shard}: 0001-0002: no label'
    assert not caplog.records


def test_synthetic_images():
    pixels, labels = draw(20, seed=3)
    images = SyntheticImages(20, seed=3)
    assert (len(images), images.class_names()) == (20, [*CLASS_NAMES])
    assert images.targets() == labels.tolist()
    few = images.subset([11, 5])
    assert (few.targets(), few.class_names()) == (labels[[11, 5]].tolist(), [*CLASS_NAMES])
    assert np.array_equal(np.asarray(few.read(0)[0]), pixels[11])


def damaged(folder):
    """Damage four of six images, each in another way; returns their files."""
    files = sorted(folder.glob('*/*.png'))
    files[0].write_bytes(b'no image at all')
    files[1].write_bytes(files[1].read_bytes()[:-200])
    files[2].write_bytes(b'')
    files[3].unlink()
    return files[:4]


@pytest.mark.parametrize('torchvisions', [False, True])
def test_unreadable_file(torchvisions, tmp_path):
    folder = write_folder(tmp_path / 'images', drawn(2))
    settings = dict(data='torch/folder', data_dir=str(folder)) if torchvisions else dict(data=str(folder))
    images = open_dataset(**settings, split='train')
    reasons = ('not an image that can be read', 'truncated', 'the file is empty', 'no such file')
    for index, (file, reason) in enumerate(zip(damaged(folder), reasons, strict=True)):
        with pytest.raises(UnreadableSampleError) as caught:
            images.read(index)
        assert str(caught.value).startswith(f'{file}: ')
        assert reason in str(caught.value)
    assert images.read(5)[1] == 2


def test_unreadable_member_of_tar(tmp_path):
    file = write_tar(tmp_path / 'images.tar', drawn(2))
    with tarfile.open(file) as archive:
        start = archive.getmember('images/ring/001.png').offset_data
    content = bytearray(file.read_bytes())
    content[start : start + 8] = b'damaged!'
    file.write_bytes(content)
    images = open_dataset(str(file), split='train')
    with pytest.raises(UnreadableSampleError, match=r'^images/ring/001\.png: not an image that can be read'):
        images.read(3)
    assert [images.read(index)[1] for index in (2, 4)] == [1, 2]


def test_unreadable_row_of_table(tmp_path):
    table = write_parquet(tmp_path / 'table', dict(train=dict(one=[Image.new('RGB', (8, 8)), b'none'])))
    images = open_dataset(f'hfds/{table}', split='train', data_dir=str(tmp_path / 'cache'))
    assert images.read(0)[0].size == (8, 8)
    with pytest.raises(UnreadableSampleError, match=r'^image 1: not an image that can be read'):
        images.read(1)


def refusal(data, **settings):
    with pytest.raises(ValueError, match=r'\.|:') as caught:
        open_dataset(str(data), **dict(split='train') | settings)
    assert str(caught.value).count('\n') == 0
    return str(caught.value)


def test_invalid_folder_or_tar(tmp_path):
    assert refusal(tmp_path / 'none') == (
        f'{tmp_path}/none: no such folder or tar of images. Other data sets begin with hfds/, wds/ or torch/; '
        'torch/cifar10 --dataset-download, for example, needs no file, but a network.'
    )
    (tmp_path / 'empty').mkdir()
    assert refusal(tmp_path / 'empty') == (
        f'{tmp_path}/empty: the folder is empty. It should hold a folder of images for each class.'
    )
    (tmp_path / 'notes.txt').write_text('no images')
    assert refusal(tmp_path / 'notes.txt') == f'{tmp_path}/notes.txt: neither a folder nor a .tar of images.'
    assert refusal(tmp_path).startswith(f'{tmp_path}/empty: the class has no images (.jpg, .png, ')
    with tarfile.open(tmp_path / 'none.tar', 'w'):
        pass
    assert refusal(tmp_path / 'none.tar').startswith(f'{tmp_path}/none.tar has no images: it should hold a folder')
    (tmp_path / 'broken.tar').write_bytes(b'this is no tar')
    assert refusal(tmp_path / 'broken.tar').startswith(f'{tmp_path}/broken.tar, split train, cannot be opened: ')


@pytest.mark.parametrize('part', ['file', 'header'])
def test_truncated_tar(tmp_path, part):
    file = write_tar(tmp_path / 'images.tar', drawn(2))
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1]
    os.truncate(file, last.offset + 100 if part == 'header' else last.offset_data + 10)
    assert refusal(file) == f'{file}: the tar is truncated. Copy or download it again.'


def test_missing_named_data_set(tmp_path):
    here = dict(data_dir=str(tmp_path))
    assert refusal('torch/mnist', **here).startswith('torch/mnist, split train, cannot be opened: Dataset not found.')
    assert refusal('torch/flowers', **here).endswith('cannot be opened: Unknown torchvision dataset flowers')
    assert refusal(f'hfds/{tmp_path}/none', **here).startswith(f'hfds/{tmp_path}/none, split train, cannot be opened: ')
    assert 'split train not found in info' in refusal(f'wds/{tmp_path}')
    folder = write_parquet(tmp_path / 'parquet', dict(train=drawn(1)))
    assert 'split test, cannot be opened: Unknown split "test"' in refusal(f'hfds/{folder}', split='test', **here)
    (folder / 'data' / 'train-00000-of-00001.parquet').write_bytes(b'PAR1 no table PAR1')
    assert 'split train, cannot be opened: ' in refusal(f'hfds/{folder}', data_dir=str(tmp_path / 'other'))


def test_missing_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    monkeypatch.delitem(sys.modules, 'timm.data.readers.reader_hfds', raising=False)
    assert refusal(f'hfds/{tmp_path}').endswith('Install the library that reads it: pip install "timm_sk[data]".')
