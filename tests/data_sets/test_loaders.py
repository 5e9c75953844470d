"""Loaders: which images are in which batch; pixels depend only on the place in the run."""

import os
import signal
from collections import Counter
from itertools import islice
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from drawn_data import drawn, write_folder, write_shards, write_tar
from PIL import Image
from timm.data import create_transform
from timm.utils import random_seed
from torchvision.transforms.v2.functional import normalize

from timm_sk.data import ImageDataset, SyntheticImages, eval_loader, normalizer, open_dataset, train_loader
from timm_sk.data.transforms import create_transform as create_our_transform
from timm_sk.data.transforms import seed_transforms
from timm_sk.distributed import DistributedContext

COUNT, BATCH = 22, 4
AUGMENTED = create_transform(
    (3, 24, 24), is_training=True, use_prefetcher=True, auto_augment='rand-m9-mstd0.5', color_jitter=0.4
)
PLAIN = create_transform((3, 24, 24), is_training=False, use_prefetcher=True)


@pytest.fixture(scope='module')
def images():
    return SyntheticImages(COUNT, seed=0)


def training(images, *, transform=AUGMENTED, rank=0, size=1, **settings):
    context = DistributedContext(rank=rank, size=size)
    return train_loader(images, transform, context=context, **dict(batch_size=BATCH, seed=1) | settings)


def evaluating(images, *, rank=0, size=1, **settings):
    context = DistributedContext(rank=rank, size=size)
    return eval_loader(images, PLAIN, context=context, **dict(batch_size=BATCH) | settings)


def same(batches, others):
    batches, others = [*batches], [*others]
    return len(batches) == len(others) and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for one, other in zip(batches, others, strict=True)
        for name in ('images', 'targets', 'indices')
    )


def test_epoch(images):
    loader = training(images)
    batches = [*loader.epoch(0)]
    assert len(batches) == len(loader) == COUNT // BATCH
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((BATCH, 3, 24, 24), torch.uint8)
        assert batch.targets.tolist() == [images.targets()[index] for index in batch.indices]
        assert batch.bad == []
    seen = torch.cat([batch.indices for batch in batches]).tolist()
    assert len({*seen}) == len(seen)
    assert seen != sorted(seen)
    later = {index for epoch in range(1, 4) for batch in loader.epoch(epoch) for index in batch.indices.tolist()}
    assert {*seen} | later == {*range(COUNT)}


@pytest.mark.parametrize('workers', [0, 2])
def test_resume_epoch(workers, images):
    whole = [*training(images).epoch(3)]
    loader = training(images, workers=workers)
    torch.manual_seed(workers)  # whatever state the run's generators are in
    assert same(loader.epoch(3, 2), whole[2:])
    left = loader.epoch(3)
    assert same(islice(left, 1), whole[:1])
    left.close()
    assert same(loader.epoch(3, 1), whole[1:])  # where the workers had gone on with what was left
    assert [*loader.epoch(3, len(loader))] == []


def test_processes_share_batches(images):
    for epoch in (0, 1):
        whole = [*training(images, batch_size=6).epoch(epoch)]
        shares = [training(images, batch_size=3, rank=rank, size=2).epoch(epoch) for rank in range(2)]
        pairs = [*zip(*shares, strict=True)]
        assert len(pairs) == len(whole) == COUNT // 6
        for batch, (first, second) in zip(whole, pairs, strict=True):
            assert torch.equal(batch.images, torch.cat([first.images, second.images]))
            assert torch.equal(batch.indices, torch.cat([first.indices, second.indices]))


def test_epoch_and_seed_change_order_and_pixels(images):
    def by_index(batches):
        return {
            index: pixels
            for batch in batches
            for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True)
        }

    loader = training(images)
    first, second, again = (by_index(loader.epoch(epoch)) for epoch in (0, 1, 0))
    other = by_index(training(images, seed=2).epoch(0))
    assert [*first] == [*again]
    assert all(torch.equal(first[index], again[index]) for index in first)
    for changed in (second, other):
        assert [*first] != [*changed]
        both = first.keys() & changed.keys()
        assert sum(torch.equal(first[index], changed[index]) for index in both) < len(both) / 4


def test_augmentation_differs_by_position():
    one = drawn(1)['star'][0]
    loader = training(ImageDataset([(one, 0)] * 8), batch_size=8)
    assert len({*content(loader.epoch(0)), *content(loader.epoch(1))}) > 12


def test_batch_larger_than_data_set(images):
    few = images.subset(range(5))
    assert [len(batch.targets) for batch in training(few, batch_size=64).epoch(0)] == [5]
    assert [len(batch.targets) for batch in training(few, batch_size=64, rank=1, size=2).epoch(0)] == [2]
    with pytest.raises(ValueError, match=r'^5 images for 6 processes: start fewer processes\.$'):
        training(few, size=6)


@pytest.mark.parametrize('size', [1, 2, 3])
@pytest.mark.parametrize('count', [1, 2, 7, 22])
def test_evaluation_has_each_image_once(count, size, images):
    few = images.subset(range(count))
    loaders = [evaluating(few, rank=rank, size=size) for rank in range(size)]
    batches = [[*loader.epoch()] for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(found) for found in batches]
    shares = [[index for batch in found for index in batch.indices.tolist()] for found in batches]
    assert sorted(index for share in shares for index in share) == [*range(count)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for batch in (batch for found in batches for batch in found):
        assert batch.targets.tolist() == [few.targets()[index] for index in batch.indices]
        expected = [PLAIN(few.read(index)[0]) for index in batch.indices.tolist()]
        assert torch.equal(batch.images, torch.stack(expected))


def damaged(tmp_path):
    """A folder of 9 images of which the 4th and 5th cannot be read, and the names of those."""
    folder = write_folder(tmp_path / 'images', drawn(3))
    files = sorted(folder.glob('*/*.png'))
    files[3].write_bytes(b'no image')
    files[4].write_bytes(files[4].read_bytes()[:-100])
    return open_dataset(str(folder), split='train'), [str(file) for file in files[3:5]]


@pytest.mark.parametrize('workers', [0, 1])
def test_training_replaces_unreadable_images(workers, tmp_path):
    images, names = damaged(tmp_path)
    batches = [*training(images, batch_size=3, workers=workers).epoch(0)]
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    assert Counter(indices) == {0: 1, 1: 1, 2: 1, 5: 3, 6: 1, 7: 1, 8: 1}
    assert torch.cat([batch.targets for batch in batches]).tolist() == [images.targets()[index] for index in indices]
    bad = [line for batch in batches for line in batch.bad]
    assert Counter(line.split(': ')[0] for line in bad) == {names[0]: 1, names[1]: 2}  # the 2nd is tried for the 1st
    assert all('not an image that can be read' in line or 'truncated' in line for line in bad)


@pytest.mark.parametrize('workers', [0, 1])
def test_evaluation_omits_unreadable_images(workers, tmp_path):
    images, names = damaged(tmp_path)
    batches = [*evaluating(images, batch_size=3, workers=workers).epoch()]
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [5], [6, 7, 8]]
    assert [batch.images.shape[0] for batch in batches] == [3, 1, 3]
    assert [[line.split(': ')[0] for line in batch.bad] for batch in batches] == [[], names, []]


def test_batch_without_readable_image(tmp_path):
    images, names = damaged(tmp_path)
    none = images.subset([3, 4])
    for loader, tries in ((evaluating(none), 1), (training(none), 2)):
        (batch,) = loader.epoch()
        assert (batch.images.numel(), batch.targets.tolist(), batch.indices.tolist()) == (0, [], [])
        assert Counter(line.split(': ')[0] for line in batch.bad) == dict.fromkeys(names, tries)


def test_tar_read_before_workers_start(tmp_path):
    images = open_dataset(str(write_tar(tmp_path / 'images.tar', drawn(20, size=32))), split='train')
    assert images.read(0)[1] == 0  # an open file would be every worker's
    assert same(evaluating(images, workers=2).epoch(), evaluating(images).epoch())


def in_shards(tmp_path, lengths=(5, 7, 6), val_lengths=(4, 3)):
    members = [(image, label) for label, found in enumerate(drawn(9).values()) for image in found]
    shards = [[members.pop() for _ in range(length)] for length in (*lengths, *val_lengths)]
    folder = write_shards(tmp_path / 'shards', dict(train=shards[: len(lengths)], validation=shards[len(lengths) :]))
    pixels = [
        {PLAIN(image).numpy().tobytes() for shard in part for image, _ in shard} for part in (shards[:3], shards[3:])
    ]
    return f'wds/{folder}', *pixels


def content(batches):
    return [pixels.numpy().tobytes() for batch in batches for pixels in batch.images]


def open_in_rank(monkeypatch, rank, size, data, **options):
    """Open a data set while torch.distributed tells timm of a rank."""
    with monkeypatch.context() as patch:
        for name, value in (('is_initialized', True), ('get_world_size', size), ('get_rank', rank)):
            patch.setattr(torch.distributed, name, lambda value=value: value)
        return open_dataset(data, **options)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_workers_share_training_shards(workers, tmp_path):
    data, train, _ = in_shards(tmp_path, lengths=(6, 6, 6, 6), val_lengths=(1,))
    stream = open_dataset(data, split='train', is_training=True)
    loader = training(stream, batch_size=3, workers=workers, transform=PLAIN)
    epochs = [content(loader.epoch(epoch)) for epoch in (0, 1)]
    for found in epochs:
        assert (len(found), len({*found})) == (24, 24)
    assert epochs[0] != epochs[1]
    assert {*epochs[0]} >= train


@pytest.mark.parametrize('workers', [0, 2])
def test_resume_stream(workers, tmp_path):
    data, *_ = in_shards(tmp_path)

    def batches(epoch, first=0, before=()):
        loader = training(open_dataset(data, split='train', is_training=True), workers=workers)
        for earlier in before:
            assert len([*loader.epoch(earlier)]) == len(loader) == 4
        return [*loader.epoch(epoch, first)]

    whole = batches(2, before=(0, 1))
    torch.manual_seed(9)
    assert same(batches(2), whole)
    assert same(batches(2, first=1), whole[1:])
    assert not same(batches(1), whole)
    indices = torch.cat([batch.indices for batch in whole])
    assert {*indices.tolist()} == {-1}


def test_augmentation_of_stream_differs_by_rank(tmp_path):
    star = drawn(1)['star'][0]
    folder = write_shards(tmp_path / 'shards', dict(train=[[(star, 0)] * 4] * 2))
    stream = open_dataset(f'wds/{folder}', split='train')
    first, second = (content(training(stream, rank=rank, size=2).epoch(0)) for rank in range(2))
    assert not {*first} & {*second}


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('size', [1, 2, 3])
def test_evaluation_has_each_image_of_stream_once(size, workers, tmp_path, monkeypatch):
    """Two shards for up to three processes, as torch.distributed tells timm of them."""
    data, _, val = in_shards(tmp_path)
    found = []
    for rank in range(size):
        stream = open_in_rank(monkeypatch, rank, size, data, split='validation')
        loader = evaluating(stream, batch_size=2, rank=rank, size=size, workers=workers)
        share = content(loader.epoch())
        assert content(loader.epoch()) == share
        assert len(loader) == -(-len(share) // 2)
        found += share
    assert len(found) == len(val) == 7
    assert {*found} == val


def test_distributed_stream_epoch(tmp_path, monkeypatch):
    data, *_ = in_shards(tmp_path, lengths=(8, 8), val_lengths=(1,))
    stream = open_in_rank(monkeypatch, 1, 2, data, split='train', is_training=True)
    loader = training(stream, rank=1, size=2)
    assert len([*loader.epoch(0)]) == len(loader) == 8 // BATCH


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(size=2, workers=2), '3 shards for 2 processes with 2 workers each: every worker needs a shard'),
        (dict(size=4), '3 shards for 4 processes with 1 workers each: every worker needs a shard'),
        (dict(batch_size=10, workers=2), '9 images per worker do not fill a batch of 10: use fewer workers'),
    ],
)
def test_stream_too_small(settings, message, tmp_path):
    data, *_ = in_shards(tmp_path)
    with pytest.raises(ValueError, match=f'^{message}'):
        training(open_dataset(data, split='train', is_training=True), **settings)


@pytest.mark.parametrize('kind', [training, evaluating])
def test_workers_ignore_signals(kind, images):
    before = {*active_children()}
    loader = kind(images, batch_size=1, workers=2)
    batches = loader.epoch()
    next(batches), next(batches)  # one of each worker, which has begun then
    workers = {*active_children()} - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len([*batches]) == COUNT - 2


@pytest.mark.parametrize('channels_last', [False, True])
def test_normalizer(channels_last):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    found = normalizer(mean, std, torch.device('cpu'), channels_last=channels_last)(images)
    torch.testing.assert_close(found, normalize(images / 255, mean, std))
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_other_errors_are_raised():
    class Broken:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(training(ImageDataset(Broken())).epoch())


@pytest.mark.deep
def test_crop_padding():
    """The image at one of 9 x 9 places in a black frame, flipped or not, and seeded as by torch, numpy and Python."""
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3), dtype=np.uint8)
    transform = create_our_transform((3, 16, 16), is_training=True, crop_padding=4, color_jitter=None)
    frame = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    places = set()
    for seed in range(200):
        seed_transforms(seed)
        found = np.asarray(transform(Image.fromarray(pixels))).transpose(1, 2, 0)
        random_seed(seed)
        assert np.array_equal(np.asarray(transform(Image.fromarray(pixels))).transpose(1, 2, 0), found)
        windows = [(y, x, frame[y : y + 16, x : x + 16]) for y in range(9) for x in range(9)]
        places |= {
            (y, x, flip)
            for y, x, window in windows
            for flip in (False, True)
            if np.array_equal(window[:, ::-1] if flip else window, found)
        }
    assert len(places) > 100
    assert {y for y, _, _ in places} == {x for _, x, _ in places} == {*range(9)}
