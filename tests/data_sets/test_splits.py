"""Training and validation splits: which images they have, and what is refused."""

from collections import Counter

import pytest
from drawn_data import CLASSES, drawn, in_folder, in_parquet, in_tar, in_torchvision_folder, write_folder, write_shards

from timm_sk.data import make_splits, open_parts
from timm_sk.data.splits import split_indices

TARGETS = [0] * 40 + [1] * 10 + [2] * 3


def test_split_indices_stratified():
    hypothesis = pytest.importorskip('hypothesis')
    st = hypothesis.strategies

    @hypothesis.given(
        targets=st.lists(st.integers(-1, 5), min_size=2, max_size=80),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 2**32),
    )
    def check(targets, fraction, seed):
        counts = Counter(targets)
        if max(counts.values()) == 1:
            with pytest.raises(ValueError, match='at most one per class'):
                split_indices(targets, fraction, seed)
            return
        train, val = split_indices(targets, fraction, seed)
        assert sorted(train + val) == [*range(len(targets))]
        assert (train, val) == (sorted(train), sorted(val))
        held_out = Counter(targets[index] for index in val)
        for label, count in counts.items():
            assert held_out[label] < count
            assert (held_out[label] > 0) == (count > 1)
            if 1 <= fraction * count <= count - 1:
                assert abs(held_out[label] - fraction * count) <= 0.5

    check()


def test_split_indices_seed():
    train, val = split_indices(TARGETS, 0.1, seed=5)
    assert (train, val) == split_indices(TARGETS, 0.1, seed=5)
    assert Counter(TARGETS[index] for index in val) == {0: 4, 1: 1, 2: 1}
    assert len({tuple(split_indices(TARGETS, 0.1, seed)[1]) for seed in range(8)}) == 8
    chosen = {index for seed in range(200) for index in split_indices(TARGETS, 0.1, seed)[1]}
    assert chosen == {*range(len(TARGETS))}  # the first and last of a class as well


@pytest.mark.parametrize(('targets', 'images'), [([0], '1 image'), ([0, 1, 2], '3 images')])
def test_split_indices_one_image_per_class(targets, images):
    with pytest.raises(
        ValueError, match=f'^Cannot hold out validation images from {images} with at most one per class'
    ):
        split_indices(targets, 0.5, seed=0)


def open_splits(data, *, val_fraction=0.1, num_classes=None, seed=0, **options):
    parts = open_parts(data, seed=seed, **options)
    return make_splits(*parts, val_fraction=val_fraction, num_classes=num_classes, seed=seed)


def pixels(part):
    return [part.read(index)[0].tobytes() for index in range(len(part))]


@pytest.mark.parametrize('kind', [in_folder, in_torchvision_folder, in_parquet])
def test_existing_validation_split(kind, tmp_path):
    train, val = drawn(4), drawn(2, seed=1)
    splits = open_splits(**kind(tmp_path, dict(train=train, validation=val)))
    assert (splits.class_names, splits.num_classes, splits.held_out) == ([*CLASSES], 3, None)
    assert splits.train.targets() == [0] * 4 + [1] * 4 + [2] * 4
    for part, images in ((splits.train, train), (splits.val, val)):
        assert {*pixels(part)} == {image.tobytes() for members in images.values() for image in members}


@pytest.mark.parametrize(
    ('kind', 'part'),
    [
        *((kind, part) for kind in (in_folder, in_torchvision_folder) for part in ('', 'train')),
        *((kind, '') for kind in (in_parquet, in_tar)),
    ],
)
def test_held_out_validation_split(kind, part, tmp_path):
    images = drawn(5)
    settings = kind(tmp_path, {part: images})
    splits = open_splits(**settings, val_fraction=0.4, seed=3)
    assert (splits.class_names, splits.num_classes, splits.held_out) == ([*CLASSES], 3, 0.4)
    assert (splits.train.targets(), splits.val.targets()) == ([0] * 3 + [1] * 3 + [2] * 3, [0] * 2 + [1] * 2 + [2] * 2)
    everything = {image.tobytes() for members in images.values() for image in members}
    assert {*pixels(splits.train)} | {*pixels(splits.val)} == everything
    assert not {*pixels(splits.train)} & {*pixels(splits.val)}
    again, other = (open_splits(**settings, val_fraction=0.4, seed=seed) for seed in (3, 4))
    assert pixels(again.val) == pixels(splits.val) != pixels(other.val)


def test_splits_in_shards(tmp_path):
    pairs = [(image, label) for label, members in enumerate(drawn(4).values()) for image in members]
    folder = write_shards(tmp_path / 'shards', dict(train=[pairs[:5], pairs[5:]], test=[pairs[::3]]))
    splits = open_splits(f'wds/{folder}', val_split='test', num_classes=3)
    assert (len(splits.train), len(splits.val), splits.num_classes, splits.class_names) == (12, 4, 3, None)
    assert [label for _, label, _ in splits.val] == [0, 0, 1, 2]
    assert sorted(label for _, label, _ in splits.train) == [0] * 4 + [1] * 4 + [2] * 4
    assert refusal(f'wds/{folder}', num_classes=3).startswith(
        f'wds/{folder}, split validation, cannot be opened: split validation not found in info'
    )
    assert refusal(f'wds/{folder}', val_split='test') == (
        'The number of classes of the data is unknown: pass --num-classes.'
    )


def refusal(data, **settings):
    with pytest.raises(ValueError, match=r'\.|:') as caught:
        open_splits(str(data), **settings)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_empty_class(tmp_path):
    root = tmp_path / 'data'
    in_folder(tmp_path, dict(train=drawn(2), val=drawn(1)))
    for folder in (root / 'train' / 'square', root / 'val' / 'square'):
        folder.mkdir()
        message = refusal(root)
        assert message.startswith(f'{folder}: the class has no images (.jpg, .png, ')
        assert message.endswith('.npy). Add some, or remove the folder.')
        (folder / 'Thumbs.db').write_bytes(b'no image')
        assert refusal(root).startswith(f'{folder}: the class has no images')
        (folder / 'Thumbs.db').unlink()
        folder.rmdir()
    (root / 'train' / '.cache').mkdir()
    assert open_splits(str(root)).num_classes == 3
    (root / 'train' / 'square').mkdir()
    assert refusal(root / 'train').startswith(f'{root}/train/square: the class has no images')
    assert refusal('torch/folder', data_dir=str(root)).startswith(f'{root}/train/square: the class has no images')


@pytest.mark.parametrize('kind', [in_folder, in_torchvision_folder])
@pytest.mark.parametrize(
    ('classes', 'difference'),
    [
        (('ring', 'square', 'cross', 'star'), 'only in training: circle; only in validation: cross, square'),
        (('ring', 'square', 'star'), 'only in training: circle; only in validation: square'),
        (('ring', 'star'), 'only in training: circle'),
    ],
)
def test_different_classes(kind, classes, difference, tmp_path):
    settings = kind(tmp_path, dict(train=drawn(2), validation=drawn(1, classes=classes)))
    assert refusal(**settings) == f'The classes of the two splits differ, {difference}: use the same folders.'


def test_num_classes(tmp_path):
    root = write_folder(tmp_path / 'data', drawn(2))
    assert open_splits(str(root), num_classes=3).num_classes == 3
    assert refusal(root, num_classes=4) == 'num_classes is 4, but the data has 3 classes: omit it, or fix the data.'


@pytest.mark.parametrize('kind', [in_folder, in_torchvision_folder])
def test_same_images_in_both_splits(kind, tmp_path):
    settings = kind(tmp_path, dict(Training=drawn(2), validation=drawn(2)))
    root = tmp_path / 'data'
    assert refusal(**settings) == f'{root} has no split train: name one of Training, validation.'
    assert open_splits(**settings, train_split='Training').held_out is None
    (root / 'Training').rename(root / 'train')
    assert refusal(**settings, train_split='validation') == (
        'validation and validation name the same split: name two, for training and validation.'
    )
    assert refusal(**settings, train_split='training', val_split='train') == (
        'training and train name the same split: name two, for training and validation.'
    )
