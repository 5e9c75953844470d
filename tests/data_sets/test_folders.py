"""Folders and tars of images: the class is the folder at the top, splits are named, what is left out is counted."""

import io
import os
import tarfile

import pytest
from drawn_data import CLASSES, drawn, encoded, write_folder
from PIL import Image

from timm_sk.data import open_dataset
from timm_sk.data.images import IMAGE_ENDINGS

GREY = Image.new('L', (8, 8), 7)


def write(root, names, *, packed=False):
    """Images by name in a folder, or in a tar of it."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(GREY, 'PNG'))
    if not packed:
        return str(root)
    with tarfile.open(root.with_suffix('.tar'), 'w') as archive:
        archive.add(root, arcname='./photos')
    return str(root.with_suffix('.tar'))


def names_of(images, data):
    prefix = 'photos/' if data.endswith('.tar') else f'{data}/'
    return [images.name(index).removeprefix(prefix) for index in range(len(images))]


@pytest.mark.parametrize('packed', [False, True])
def test_class_is_folder_at_top(packed, tmp_path, caplog):
    kept = ['cat/9.png', 'cat/2023/1.png', 'cat/2023/10.png', 'dog/2023/spring/1.png']
    hidden = ['cat/._9.png', 'cat/.cache/1.png', '.trash/1.png', '__MACOSX/cat/1.png']
    left_out = ['cover.png', 'cat/notes.txt', 'dog/2023/labels.csv', 'dog/x.xml']
    data = write(tmp_path / 'data', kept + hidden + left_out, packed=packed)
    images = open_dataset(data, split='train')
    assert images.class_names() == ['cat', 'dog']
    assert [*zip(names_of(images, data), images.targets(), strict=True)] == [*zip(kept, [0, 0, 0, 1], strict=True)]
    named = 'cat/notes.txt; cover.png; dog/2023/labels.csv and 1 more'
    where = f'{data}/photos' if packed else data
    assert caplog.messages == [f'{where}: 4 files left out (not images in the folder of a class): {named}']


@pytest.mark.all_cases
@pytest.mark.parametrize('kind', ['folder', 'tar', 'torchvision'])
def test_every_ending(kind, tmp_path, caplog):
    names = [f'a/x{ending}' for ending in IMAGE_ENDINGS] + ['b/y.JPEG', 'b/z.TIF']
    data = write(tmp_path / 'data', names, packed=kind == 'tar')
    settings = dict(data='torch/folder', data_dir=data) if kind == 'torchvision' else dict(data=data)
    images = open_dataset(**settings, split='train')
    assert sorted(names_of(images, data)) == sorted(names)
    assert {images.read(index)[0].getpixel((0, 0)) for index in range(len(images))} == {(7, 7, 7)}
    assert not caplog.messages


def test_classes_outside_class_map(tmp_path, caplog):
    data = write(tmp_path / 'data', ['cat/1.png', 'dog/1.png', 'cover.png'])
    assert len(open_dataset(data, split='train', class_map=dict(cat=0))) == 1
    assert caplog.messages == [
        f'{data}: 1 file left out (not images in the folder of a class): cover.png',
        f'{data}: 1 file left out (of classes that the class map leaves out): dog/1.png',
    ]


def test_link_to_folder_that_it_is_in(tmp_path):
    data = write(tmp_path / 'data', ['cat/deep/1.png', 'dog/1.png'])
    for link, target in (('self', '.'), ('cat/up', '..'), ('dog/cat', '../cat/deep'), ('cat/deep/dog', '../../dog')):
        (tmp_path / 'data' / link).symlink_to(target, target_is_directory=True)
    images = open_dataset(data, split='train')
    assert images.class_names() == ['cat', 'dog']
    assert names_of(images, data) == ['cat/deep/1.png', 'cat/deep/dog/1.png', 'dog/1.png', 'dog/cat/1.png']


def test_order_of_classes(tmp_path):
    """As in timm and, by its name, as in torchvision: class indices are those of weights trained with them."""
    data = write(tmp_path / 'data', ['class10/x.png', 'class9/x.png', 'Class1/x.png'])
    assert open_dataset(data, split='train').class_names() == ['Class1', 'class9', 'class10']
    named = open_dataset('torch/folder', data_dir=data, split='train').class_names()
    assert named == ['Class1', 'class10', 'class9']


def test_tar_of_tars_and_links(tmp_path):
    """A tar for each class, as ImageNet has them, and a hard link."""
    with tarfile.open(tmp_path / 'all.tar', 'w') as archive:
        for name, members in drawn(2).items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as packed:
                for index, image in enumerate(members):
                    content = encoded(image, 'PNG')
                    member = tarfile.TarInfo(f'{index}.png')
                    member.size = len(content)
                    packed.addfile(member, io.BytesIO(content))
                link = tarfile.TarInfo('again.png')
                link.type, link.linkname = tarfile.LNKTYPE, '1.png'
                packed.addfile(link)
            member = tarfile.TarInfo(f'{name}.tar')
            member.size = len(inner.getvalue())
            archive.addfile(member, io.BytesIO(inner.getvalue()))
    images = open_dataset(str(tmp_path / 'all.tar'), split='train')
    assert images.class_names() == [*CLASSES]
    for label, members in enumerate(drawn(2).values()):
        found = [images.read(3 * label + index) for index in range(3)]
        assert [at for _, at in found] == [label] * 3
        assert [image.tobytes() for image, _ in found] == [members[index].tobytes() for index in (0, 1, 1)]


def test_links_of_tar(tmp_path, caplog):
    """Before and after their targets, to each other, to hidden files, and to nothing."""
    links = [
        *(('a/first.png', tarfile.LNKTYPE, '/b/x.png'), ('a/soft.png', tarfile.SYMTYPE, '../b/x.png')),
        *(('b/chain.png', tarfile.SYMTYPE, '../a/soft.png'), ('b/store.png', tarfile.SYMTYPE, '../.store/x')),
        *(('a/none.png', tarfile.SYMTYPE, 'gone.png'), ('b/loop.png', tarfile.SYMTYPE, 'loop.png')),
    ]
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        for name, kind, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ('b/x.png', '.store/x'):
            member = tarfile.TarInfo(name)
            member.size = len(encoded(GREY, 'PNG'))
            archive.addfile(member, io.BytesIO(encoded(GREY, 'PNG')))
    images = open_dataset(str(tmp_path / 'x.tar'), split='train')
    found = ['a/first.png', 'a/soft.png', 'b/chain.png', 'b/store.png', 'b/x.png']
    assert [images.name(index) for index in range(len(images))] == found
    assert {images.read(index)[0].getpixel((0, 0)) for index in range(len(images))} == {(7, 7, 7)}
    line = '2 files left out (neither files nor links to files in the tar): a/none.png; b/loop.png'
    assert caplog.messages == [f'{tmp_path}/x.tar: {line}']


SPLIT = ['cat/1.png', 'dog/1.png']


def in_splits(*splits):
    return [f'{split}/{name}' for split in splits for name in SPLIT]


@pytest.mark.all_cases
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(
    ('names', 'split', 'found'),
    [
        (in_splits('train', 'val'), 'validation', 'val/'),
        (in_splits('train', 'holdout'), 'holdout', 'holdout/'),
        (SPLIT, 'validation', ''),
        (['train/1.png', 'test/1.png', 'car/1.png'], 'train', ''),  # vehicles
    ],
)
def test_split(names, split, found, packed, tmp_path):
    data = write(tmp_path / 'data', names, packed=packed)
    assert names_of(images := open_dataset(data, split=split), data) == sorted(
        name for name in names if name.startswith(found)
    )
    assert len(images.class_names()) == len({name.removeprefix(found).split('/')[0] for name in names_of(images, data)})


@pytest.mark.parametrize('packed', [False, True])
def test_class_beside_splits(packed, tmp_path, caplog):
    names = [*in_splits('train', 'holdout'), 'car/1.png', 'notes/x.txt']
    data = write(tmp_path / 'data', names, packed=packed)
    assert len(open_dataset(data, split='train')) == 2
    assert caplog.messages == [f'{data}: 1 folder left out (beside the splits): car']


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('names', 'split', 'advice'),
    [
        (in_splits('train', 'validation'), 'tset', 'name one of train, validation'),
        (in_splits('train'), 'validation', 'name one of train'),
        (in_splits('Train', 'Test'), 'train', 'name one of Test, Train'),
        (in_splits('test'), 'validation', 'name one of test'),
        (SPLIT, 'test', 'it has no splits, but the folders cat, dog'),
        (in_splits('part1', 'part2'), 'part3', 'it has no splits, but the folders part1, part2'),
    ],
)
def test_unknown_split(names, split, advice, tmp_path):
    for packed in (False, True):
        data = write(tmp_path / 'data', names, packed=packed)
        with pytest.raises(ValueError, match=f'^{data} has no split {split}: {advice}\\.$'):
            open_dataset(data, split=split)
        if packed or split == 'tset':
            with pytest.raises(ValueError, match=f'^{data} has no split {split}: {advice}\\.$'):
                open_dataset(data, split=split, timm_reader=True)


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('names', 'split', 'count'),
    [
        (in_splits('train', 'val'), 'validation', 2),
        (in_splits('train', 'holdout'), 'holdout[:1]', 2),
        (in_splits('train', 'val'), 'train/cat', 1),
        (['train/1.png', *in_splits('val')], 'train', 1),
        (SPLIT, 'validation', 2),
    ],
)
def test_splits_of_timm(names, split, count, tmp_path):
    data = write(tmp_path / 'data', names)
    assert len(open_dataset(data, split=split, timm_reader=True)) == count


def test_split_of_tar_for_timm(tmp_path):
    """timm reads all of a tar."""
    data = write(tmp_path / 'data', in_splits('train', 'val'), packed=True)
    with pytest.raises(ValueError, match=f'^{data}: timm reads all of a tar, not its split val: unpack it, or read'):
        open_dataset(data, split='val', timm_reader=True)
    for names in (SPLIT, in_splits('val')):
        data = write(tmp_path / f'data{len(names[0])}', names, packed=True)
        assert len(open_dataset(data, split='val', timm_reader=True)) == 2


def test_unknown_split_of_torchvision(tmp_path):
    with pytest.raises(ValueError, match=r'^torch/mnist has no split tset: name train or test\.$'):
        open_dataset('torch/mnist', split='tset', data_dir=str(tmp_path))


def test_one_class_of_folders(tmp_path):
    """The folder above the one that was meant."""
    data = write(tmp_path / 'data', in_splits('photos'))
    with pytest.raises(ValueError, match=r'data has one class, photos, with the folders cat, dog: name the folder'):
        open_dataset(data, split='train')
    assert open_dataset(f'{data}/photos', split='train').class_names() == ['cat', 'dog']


@pytest.mark.parametrize('name', [b'caf\xe9', b'two\nlines'])
def test_invalid_class_name(name, tmp_path):
    root = write_folder(tmp_path / 'data', drawn(2))
    os.rename(root / 'ring', os.path.join(os.fsencode(root), name))
    images = open_dataset(str(root), split='train')
    with pytest.raises(ValueError, match=r'^Invalid name of a class, .*: rename it, in UTF-8') as caught:
        images.class_names()
    assert str(caught.value).isascii()
    assert '\n' not in str(caught.value)


def test_file_name_that_is_not_utf8(tmp_path):
    root = write_folder(tmp_path / 'data', drawn(1))
    os.rename(root / 'ring' / '000.png', os.path.join(os.fsencode(root), b'ring', b'\xe9.png'))
    assert open_dataset(str(root), split='train').name(1) == f'{root}/ring/\\xe9.png'
