"""Means and intervals of a study, compared with all images at once and with a bootstrap."""

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
from timm_sk.explain.intervals import MIN_IMAGES, RunningMeans, t_quantile

SCALES = (1.0, 2.0)
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def model():
    return timm.create_model('sknet_atto.shapes', pretrained=True).eval()


def study(model, count=40, *, batch_size=64, **kwargs):
    batches = shape_batches(count, explain.Zoom(model, SCALES), device=CPU, batch_size=batch_size)
    names = shapes.CLASS_NAMES
    return explain.study(model, batches, **{'scales': SCALES, 'class_names': names} | kwargs)


def by_hand(model, count):
    """Differences [S, N, U] and labels of all images at once."""
    values = []
    for scale in SCALES:
        pixels, labels = shapes.draw(count, seed=shapes.TEST_SEED, scale=0.3 * scale)
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        units = timm_sk.attention_weights(model, x)
        values.append(torch.stack([(unit.weights[:, 1] - unit.weights[:, 0]).mean(1) for unit in units], 1))
    return torch.stack(values).numpy(), labels


def interval(values):
    """Mean and 95 % interval of values [40, ...] by the tabulated quantile of 39 degrees of freedom."""
    half = 2.0227 * values.std(0, ddof=1) / 40**0.5
    return np.stack([values.mean(0), values.mean(0) - half, values.mean(0) + half])


def parts(estimate):
    return np.stack([estimate.mean, estimate.low, estimate.high])


@pytest.mark.parametrize('batch_size', [7, 16, 40])
def test_means_and_intervals(model, batch_size):
    values, labels = by_hand(model, 40)
    found = study(model, batch_size=batch_size)
    assert (found.units, found.chosen) == (('SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1'), ('SK_2_1', 'SK_3_1', 'SK_5_1'))
    np.testing.assert_allclose(parts(found.overall), interval(values.transpose(1, 0, 2)), atol=1e-5)
    np.testing.assert_allclose(parts(found.shift), interval(values[1] - values[0]), atol=1e-5)
    assert found.counts.tolist() == np.bincount(labels, minlength=8).tolist()
    for label in range(8):
        of_class = values[:, labels == label][..., [0, 1, 3]]
        np.testing.assert_allclose(found.by_class.mean[label], of_class.mean(1), atol=1e-5)
        np.testing.assert_allclose(found.shift_by_class.mean[label], (of_class[1] - of_class[0]).mean(0), atol=1e-5)
        assert np.isnan(found.shift_by_class.low[label]).all() == (found.counts[label] < MIN_IMAGES)


@pytest.mark.parametrize(
    ('probability', 'degrees', 'expected'),
    [(0.975, 4, 2.776), (0.975, 9, 2.262), (0.975, 29, 2.045), (0.995, 4, 4.604), (0.95, 9, 1.833), (0.9, 1e9, 1.2816)],
)
def test_t_quantile(probability, degrees, expected):
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=3e-3)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-expected, rel=3e-3)


def test_intervals_compared_with_a_bootstrap():
    generator = np.random.default_rng(5)
    values = np.stack([generator.exponential(size=200), generator.normal(3, 0.1, size=200)], axis=1)
    means = RunningMeans(2, (2,))
    for rows in np.array_split(values, 9):
        means.add(rows, np.zeros(len(rows), dtype=np.int64))
    found = means.overall(0.9)
    drawn = values[generator.integers(0, 200, (4000, 200))].mean(1)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    assert (abs(found.low - low) < 0.1 * (high - low)).all()
    assert (abs(found.high - high) < 0.1 * (high - low)).all()
    by_class = means.by_class(0.9)
    np.testing.assert_allclose(parts(by_class[0]), parts(found))
    assert np.isnan(parts(by_class[1])).all()  # no images


def test_memory_does_not_grow_with_the_images(model):
    held = []

    def batches(count):
        for _ in range(count):
            yield [torch.zeros(200, 3, 32, 32)] * 2, torch.arange(200) % 2
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()  # which sees numpy's arrays
    try:
        found = explain.study(model, batches(30), scales=SCALES, class_names='ab')
    finally:
        tracemalloc.stop()
    assert found.counts.tolist() == [3000, 3000]
    assert held[-1] - held[5] < 100_000  # the values of 24 batches have 460,800 bytes
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('workers', [0, 1])
def test_batches_of_files(model, tmp_path, workers):
    folder = write_folder(tmp_path / 'data', drawn(3, size=48))
    zoom = explain.Zoom(model, SCALES)
    images = open_dataset(str(folder), split='validation')
    batches = list(data_batches(images, zoom, device=CPU, batch_size=4, workers=workers))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    x = torch.cat([torch.stack(at_scales) for at_scales, _ in batches], dim=1)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    expected = [[transform(explain.zoom_in(images.read(n)[0], s)) for n in range(9)] for s in SCALES]
    torch.testing.assert_close(x, torch.stack([torch.stack(row) for row in expected]), atol=1e-5, rtol=0)


def test_small_images_in_files(model, tmp_path):
    folder = write_folder(tmp_path / 'data', {'circle': drawn(2, size=48)['circle'], 'ring': drawn(1, size=16)['ring']})
    zoom = explain.Zoom(model, SCALES)
    images = open_dataset(str(folder), split='validation')
    with pytest.raises(ValueError, match=r'ring/000.png: 16x16 pixels are fewer than'):
        list(data_batches(images, zoom, device=CPU, workers=0))
    bad = []
    (batch,) = data_batches(images, zoom, device=CPU, workers=0, on_bad=bad.append)
    assert batch[1].tolist() == [0, 0]
    assert len(bad) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_batches_of_streams(model, tmp_path, workers):
    shards = {}
    for name, size in (('large', 48), ('small', 16)):
        folder = write_shards(tmp_path / name, {'validation': [[(ring, 1) for ring in drawn(2, size=size)['ring']]]})
        stream = open_dataset(f'wds/{folder}', split='validation', num_samples=2)
        shards[name] = data_batches(stream, explain.Zoom(model, SCALES), device=CPU, workers=workers)
    ((images, labels),) = shards['large']
    assert [at_scale.shape for at_scale in images] == [(2, 3, 32, 32)] * 2
    assert labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"^An image: 16x16 pixels are fewer than the model's input of 32x32"):
        list(shards['small'])
    assert not multiprocessing.active_children()  # which the process would wait for in its end


def test_invalid_arguments(model):
    def of(*labels, scales=2):
        return [([torch.zeros(len(labels), 3, 32, 32)] * scales, torch.tensor(labels))]

    known = dict(scales=SCALES, class_names=('a', 'b'))
    for batches, kwargs, message in [
        ([], {}, 'has no images'),
        (of(0, 2), {}, 'Invalid label 2: there are 2 classes'),
        (of(-1), {}, 'Invalid label -1'),
        (of(0, scales=3), {}, 'a batch of 3 scales, expected 2'),
        (of(0), dict(units=['SK_1_1']), 'Unknown unit SK_1_1: the model has SK_2_1'),
        (of(0), dict(confidence=1.0), 'between 0 and 1, got 1.0'),
    ]:
        with pytest.raises(ValueError, match=message):
            explain.study(model, batches, **known | kwargs)
    alone = timm.create_model('resnest50d_1s4x24d')
    with pytest.raises(ValueError, match='No unit of the model has several branches'):
        explain.study(alone, [([torch.zeros(1, 3, 32, 32)] * 2, torch.tensor([0]))], **known)
    assert alone.training
    with pytest.raises(ValueError, match='has no unit that selects'):
        explain.study(timm.create_model('resnet10t'), [], **known)


def test_batches_of_shapes(model):
    zoom = explain.Zoom(model, (1, 3))
    ((small, large), labels), *more = shape_batches(5, zoom, device=CPU, batch_size=4)
    assert len(more) == 1
    pixels, truth = shapes.draw(5, seed=shapes.TEST_SEED, scale=0.9)
    torch.testing.assert_close(large, torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-5, rtol=0)
    assert not torch.equal(small, large)
    assert labels.tolist() == truth[:4].tolist()
    with pytest.raises(ValueError, match=r'At a scale of 3.5 a shape would be larger than the image: take 3.33'):
        next(shape_batches(5, explain.Zoom(model, (1, 3.5)), device=CPU))
    grey = timm.create_model('sknet_atto', in_chans=1)
    with pytest.raises(ValueError, match='the model takes 1x32x32'):
        next(shape_batches(5, explain.Zoom(grey), device=CPU))


def test_documented_numbers(model):
    rows = list(csv.DictReader((ROOT / 'docs' / 'attention' / 'shapes.csv').read_text().splitlines()))
    page = (ROOT / 'docs' / 'attention.md').read_text()
    found = study(model, shapes.TEST_COUNT)
    for u, unit in enumerate(found.units):
        of_unit = {(row['quantity'], row['scale']): row for row in rows if row['unit'] == unit and not row['class']}
        for s, scale in enumerate(('1', '2')):
            assert float(of_unit['difference', scale]['mean']) == pytest.approx(found.overall.mean[s, u], abs=1e-3)
        shift = of_unit['shift', '']
        assert shift['images'] == '2000'
        for part in ('mean', 'low', 'high'):
            assert float(shift[part]) == pytest.approx(getattr(found.shift, part)[u], abs=1e-3)
        low, high = float(shift['low']), float(shift['high'])
        assert f'| {float(shift["mean"]):+.3f} | {low:+.3f} to {high:+.3f} |' in page
