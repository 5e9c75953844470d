"""Means and intervals of a study, against all pictures at once and numpy's own bootstrap."""

import csv
import multiprocessing
import tracemalloc

import numpy as np
import pytest
import timm
import torch
from drawn_data import drawn, write_folder, write_shards
from subprocesses import ROOT

import timm_sk
from timm_sk import explain, shapes
from timm_sk.data import open_dataset
from timm_sk.explain.batches import data_batches, shape_batches
from timm_sk.explain.bootstrap import Means, PoissonBootstrap, estimate

SCALES = (1.0, 2.0)
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def model():
    return timm.create_model('sknet_atto.shapes', pretrained=True).eval()


def study(model, count=40, *, batch_size=64, **kwargs):
    batches = shape_batches(count, explain.Enlarging(model, SCALES), device=CPU, batch_size=batch_size)
    names = shapes.CLASS_NAMES
    return explain.study(model, batches, **{'scales': SCALES, 'class_names': names, 'replicates': 50} | kwargs)


def by_hand(model, count):
    """Differences [S, N, U] and labels of pictures that are drawn here."""
    values = []
    for scale in SCALES:
        pixels, labels = shapes.draw(count, seed=shapes.TEST_SEED, scale=0.3 * scale)
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        units = timm_sk.attention_weights(model, x)
        values.append(torch.stack([(unit.weights[:, 1] - unit.weights[:, 0]).mean(1) for unit in units], 1))
    return torch.stack(values).numpy(), labels


def test_means_are_those_of_all_pictures(model):
    values, labels = by_hand(model, 40)
    found = study(model, batch_size=16)
    assert (found.units, found.chosen) == (('SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1'), ('SK_2_1', 'SK_3_1', 'SK_5_1'))
    np.testing.assert_allclose(found.overall.mean, values.mean(1), atol=1e-5)
    np.testing.assert_allclose(found.shift.mean, (values[1] - values[0]).mean(0), atol=1e-5)
    assert found.counts.tolist() == np.bincount(labels, minlength=8).tolist()
    for label in range(8):
        of_class = values[:, labels == label][..., [0, 1, 3]]
        np.testing.assert_allclose(found.by_class.mean[label], of_class.mean(1), atol=1e-5)
        np.testing.assert_allclose(found.shift_by_class.mean[label], (of_class[1] - of_class[0]).mean(0), atol=1e-5)


def test_neither_means_nor_intervals_depend_on_batches(model):
    found, other = study(model, batch_size=7), study(model, batch_size=40)
    for name in ('overall', 'by_class', 'shift', 'shift_by_class'):
        for part in ('mean', 'low', 'high'):
            one, two = (getattr(getattr(result, name), part) for result in (found, other))
            np.testing.assert_allclose(one, two, atol=1e-5)
    assert (found.overall.low < found.overall.mean).all()
    assert (found.overall.mean < found.overall.high).all()


def test_intervals_are_those_of_a_bootstrap():
    generator = np.random.default_rng(5)
    values = np.stack([generator.exponential(size=200), generator.normal(3, 0.1, size=200)], axis=1)
    means, bootstrap = Means(2, 4000), PoissonBootstrap(4000, seed=1)
    for rows in np.array_split(values, 9):
        means.add(rows, bootstrap.draw(len(rows)))
    found = estimate(means.mean(), means.replicates(), 0.9)
    drawn = values[generator.integers(0, 200, (4000, 200))].mean(1)  # as many pictures, with replacement
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    spread = high - low
    np.testing.assert_allclose(found.mean, values.mean(0))
    assert (abs(found.low - low) < 0.1 * spread).all()
    assert (abs(found.high - high) < 0.1 * spread).all()
    drawn_at_once = PoissonBootstrap(3, seed=1).draw(5)
    assert drawn_at_once.mean(axis=0).shape == (3,)
    first, second = (PoissonBootstrap(3, seed=seed) for seed in (1, 2))
    assert np.array_equal(np.concatenate([first.draw(2), first.draw(3)]), drawn_at_once)
    assert not np.array_equal(second.draw(5), drawn_at_once)


def test_a_class_without_pictures_and_replicates_without_any():
    bootstrap = PoissonBootstrap(64, seed=0)
    means = Means(1, 64)
    empty = estimate(means.mean(), means.replicates(), 0.95)
    assert np.isnan([empty.mean, empty.low, empty.high]).all()
    draws = bootstrap.draw(1)
    means.add(np.array([[2.5]]), draws)
    assert means.replicates().shape == (1, int((draws > 0).sum()))  # 1 / e of them drew none
    alone = estimate(means.mean(), means.replicates(), 0.95)
    assert (alone.mean, alone.low, alone.high) == ([2.5], [2.5], [2.5])


def test_memory_does_not_grow_with_the_pictures(model):
    held = []

    def batches(count):
        for _ in range(count):
            yield [torch.zeros(2, 3, 32, 32)] * 2, torch.tensor([0, 1])
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()  # which sees numpy's arrays
    try:
        found = explain.study(model, batches(30), scales=SCALES, class_names='ab', replicates=2000)
    finally:
        tracemalloc.stop()
    assert found.counts.tolist() == [30, 30]
    assert held[-1] - held[5] < 100_000  # the draws of a batch have 32,000 bytes, those of 24 batches 768,000
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('workers', [0, 1])
def test_files_are_read_once_for_all_scales(model, tmp_path, workers):
    folder = write_folder(tmp_path / 'data', drawn(3, size=48))
    enlarging = explain.Enlarging(model, SCALES)
    pictures = open_dataset(str(folder), split='validation')
    batches = list(data_batches(pictures, enlarging, device=CPU, batch_size=4, workers=workers))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    x = torch.cat([torch.stack(at_scales) for at_scales, _ in batches], dim=1)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    expected = [[transform(explain.enlarge(pictures.read(n)[0], s)) for n in range(9)] for s in SCALES]
    torch.testing.assert_close(x, torch.stack([torch.stack(row) for row in expected]), atol=1e-5, rtol=0)


def test_small_pictures_are_named_and_left_out_or_refused(model, tmp_path):
    folder = write_folder(tmp_path / 'data', {'circle': drawn(2, size=48)['circle'], 'ring': drawn(1, size=16)['ring']})
    enlarging = explain.Enlarging(model, SCALES)
    pictures = open_dataset(str(folder), split='validation')
    with pytest.raises(ValueError, match=r'ring/000.png: 16x16 pixels are fewer than'):
        list(data_batches(pictures, enlarging, device=CPU, workers=0))
    bad = []
    (batch,) = data_batches(pictures, enlarging, device=CPU, workers=0, on_bad=bad.append)
    assert batch[1].tolist() == [0, 0]
    assert len(bad) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_streams_are_studied_and_small_pictures_in_them_refused(model, tmp_path, workers):
    shards = {}
    for name, size in (('large', 48), ('small', 16)):
        folder = write_shards(tmp_path / name, {'validation': [[(ring, 1) for ring in drawn(2, size=size)['ring']]]})
        stream = open_dataset(f'wds/{folder}', split='validation', num_samples=2)
        shards[name] = data_batches(stream, explain.Enlarging(model, SCALES), device=CPU, workers=workers)
    ((pictures, labels),) = shards['large']
    assert [at_scale.shape for at_scale in pictures] == [(2, 3, 32, 32)] * 2
    assert labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"^A picture: 16x16 pixels are fewer than the model's input of 32x32"):
        list(shards['small'])
    assert not multiprocessing.active_children()  # which the process would wait for in its end


def test_what_cannot_be_studied_is_refused(model):
    def of(*labels, scales=2):
        return [([torch.zeros(len(labels), 3, 32, 32)] * scales, torch.tensor(labels))]

    known = dict(scales=SCALES, class_names=('a', 'b'))
    for batches, kwargs, message in [
        ([], {}, 'no picture to study'),
        (of(0, 2), {}, 'label 2, but there are 2 classes'),
        (of(-1), {}, 'label -1'),
        (of(0, scales=3), {}, 'has 3 scales, 2 are named'),
        (of(0), dict(units=['SK_1_1']), 'no unit SK_1_1: the model has SK_2_1'),
        (of(0), dict(replicates=0), 'got 0, 0.95'),
        (of(0), dict(confidence=1.0), 'got 500, 1.0'),
    ]:
        with pytest.raises(ValueError, match=message):
            explain.study(model, batches, **known | kwargs)
    alone = timm.create_model('resnest50d_1s4x24d')
    with pytest.raises(ValueError, match='No unit of the model has several branches'):
        explain.study(alone, [([torch.zeros(1, 3, 32, 32)] * 2, torch.tensor([0]))], **known)
    assert alone.training
    with pytest.raises(ValueError, match='has no unit that selects'):
        explain.study(timm.create_model('resnet10t'), [], **known)


def test_shapes_are_drawn_larger_but_not_too_large(model):
    enlarging = explain.Enlarging(model, (1, 3))
    ((small, large), labels), *more = shape_batches(5, enlarging, device=CPU, batch_size=4)
    assert len(more) == 1
    pixels, truth = shapes.draw(5, seed=shapes.TEST_SEED, scale=0.9)
    torch.testing.assert_close(large, torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-5, rtol=0)
    assert not torch.equal(small, large)
    assert labels.tolist() == truth[:4].tolist()
    with pytest.raises(ValueError, match=r'At a scale of 3.5 a shape would be larger than the picture: take 3.33'):
        next(shape_batches(5, explain.Enlarging(model, (1, 3.5)), device=CPU))
    grey = timm.create_model('sknet_atto', in_chans=1)
    with pytest.raises(ValueError, match='the model takes 1x32x32'):
        next(shape_batches(5, explain.Enlarging(grey), device=CPU))


def test_the_documented_numbers_are_those_of_its_command(model):
    with (ROOT / 'docs' / 'attention' / 'shapes.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / 'docs' / 'attention.md').read_text()
    found = study(model, shapes.TEST_COUNT, replicates=500)
    for u, unit in enumerate(found.units):
        of_unit = {(row['quantity'], row['scale']): row for row in rows if row['unit'] == unit and not row['class']}
        for s, scale in enumerate(('1', '2')):
            assert float(of_unit['difference', scale]['mean']) == pytest.approx(found.overall.mean[s, u], abs=1e-3)
        shift = of_unit['shift', '']
        assert shift['pictures'] == '2000'
        for part in ('mean', 'low', 'high'):
            assert float(shift[part]) == pytest.approx(getattr(found.shift, part)[u], abs=1e-3)
        low, high = float(shift['low']), float(shift['high'])
        assert f'| {float(shift["mean"]):+.3f} | {low:+.3f} to {high:+.3f} |' in page
