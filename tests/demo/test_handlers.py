"""The handlers of the page, without a server."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from demo.sample_images import RING, SEVEN, photo, png
from PIL import Image
from subprocesses import ROOT

from timm_sk import attention_weights, record_attention
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.data.images import read_image
from timm_sk.errors import UnknownModelError, UnreadableImageError
from timm_sk.explain import attention_difference, contribution_difference, zoom_in
from timm_sk.factory import load, transforms
from timm_sk.inference.prediction import predict
from timm_sk.models import costs
from timm_sk.pretrained import Store

pytest.importorskip('gradio')
from timm_sk.demo import analysis, charts, checkpoint_table, choices, examples, model_cache, uploads
from timm_sk.demo import html as bars
from timm_sk.demo.choices import offered
from timm_sk.demo.handlers import respond
from timm_sk.demo.maps import maps, overlay
from timm_sk.demo.model_cache import ModelCache, PageModel
from timm_sk.demo.uploads import LIMITS, read_upload

SHAPES = 'sknet_atto.shapes'


@pytest.fixture(scope='module')
def shapes():
    return PageModel(*load(SHAPES, device='cpu'))


def text_of(html):
    return ' '.join(re.sub(r'<[^>]*>', ' ', html).split())


def test_classes_and_attention(shapes):
    found = analysis.analyse(shapes, read_image(RING), 1.5)
    views = [transforms(SHAPES)(view) for view in (read_image(RING), zoom_in(read_image(RING), 1.5))]
    with record_attention(shapes.model, contributions=True) as units, torch.no_grad():
        shapes.model(torch.stack(views))
    assert [unit.name for unit in found.units] == [unit.name for unit in units] == [f'SK_{n}_1' for n in (2, 3, 4, 5)]
    for shown, unit in zip(found.units, units, strict=True):
        assert [shown.unscaled, shown.scaled] == pytest.approx(attention_difference(unit).tolist(), abs=1e-6)
        assert torch.equal(shown.map, contribution_difference(unit)[1])
    whole = analysis.analyse(shapes, read_image(RING), 1)
    (predicted,) = predict(shapes.model, [RING])
    assert whole.labels == predicted.labels
    assert whole.probabilities == pytest.approx(predicted.probabilities, abs=1e-5)
    assert all(unit.scaled == pytest.approx(unit.unscaled, abs=1e-6) for unit in whole.units)
    assert np.abs(np.int16(whole.seen) - np.int16(read_image(RING))).max() == 0  # the input, not normalized
    assert np.abs(np.int16(found.seen) - np.int16(whole.seen)).max() > 50


def test_enlarge_small_image():
    digits = PageModel(*load('sknet_atto.digits', device='cpu'))
    seven = read_image(SEVEN)
    assert seven.size == (8, 8)
    assert [analysis._enlarged(seven, scale).size for scale in (1, 3)] == [(8, 8), (11, 11)]
    little, none = (analysis.analyse(digits, seven, scale) for scale in (1.01, 1))  # no leap between them
    for near, at in zip(little.units, none.units, strict=True):
        assert near.scaled == pytest.approx(at.scaled, abs=0.02)


def test_single_pixel(shapes):
    pixel = Image.new('RGB', (1, 1), 'red')
    assert [len(analysis.analyse(shapes, pixel, scale).units) for scale in (1, 1.5, 3)] == [4, 4, 4]


def test_model_with_one_channel():
    fresh = dict(pretrained=False, num_classes=3, device='cpu')
    grey = PageModel(*load('sknet_atto', in_chans=1, **fresh))
    found = analysis.analyse(grey, read_image(RING), 1)
    expected = attention_weights(grey.model, grey.transform(read_image(RING))[None])
    assert found.units[0].scaled == pytest.approx(float(attention_difference(expected[0])), abs=1e-6)
    with pytest.raises(ValueError, match='the model takes 4'):
        PageModel(*load('sknet_atto', in_chans=4, **fresh))


def test_html_has_numbers_as_text(shapes):
    found = analysis.analyse(shapes, read_image(RING), 2)
    html = bars.answer(found, SHAPES)
    text = text_of(html)
    for label, probability in zip(found.labels, found.probabilities, strict=True):
        assert f'{label} {probability:.1%}' in text
    for unit in found.units:
        numbers = f'{unit.scaled:+.3f} {unit.scaled - unit.unscaled:+.3f}'.replace('-0.000', '+0.000')
        numbers = numbers.replace('-', '−')
        assert f'{unit.name} {numbers}' in text
    assert 'the middle of the image, enlarged 2 times"' in html
    assert [bars._signed(value) for value in (-0.0004, -0.0006)] == ['+0.000', '−0.001']  # zero has no minus
    lefts = [float(left) for left in re.findall(r'sk-mark" style="left:([\d.]+)%', html)]
    assert lefts == pytest.approx([50 + 50 * unit.unscaled / 0.25 for unit in found.units], abs=0.01)


def test_names_are_escaped():
    units = (analysis.UnitDifference(name='<script>', unscaled=0, scaled=0, map=torch.zeros(1, 1)),)
    found = analysis.Analysis(
        scale=1, labels=('<script>',), probabilities=(1.0,), units=units, seen=Image.new('RGB', (8, 8))
    )
    html = bars.answer(found, '"><img>') + bars.message('<script>') + maps(found)
    assert not re.search(r'<script>|<img>', html)


@pytest.mark.parametrize('name', ['resnet18', 'resnest50d_1s1x64d'])
def test_model_without_several_branches(name):
    model = PageModel(*load(name, pretrained=False, num_classes=3, device='cpu'))
    found = analysis.analyse(model, read_image(RING), 1)
    assert (found.units, len(found.labels)) == ((), 3)
    assert 'no units that choose' in bars.answer(found, name)
    assert maps(found) == ''


@pytest.mark.parametrize(
    ('path', 'name', 'scale', 'expected'),
    [
        (None, SHAPES, 1, 'Upload an image'),
        (RING, None, 1, 'Choose a model'),
        *((RING, SHAPES, scale, 'The scale must be 1 to 3') for scale in (0.5, 0, -1, 3.5, float('nan'))),
        # the tests are offline
        (RING, 'skresnet18.ra_in1k', 1, 'No weights of skresnet18.ra_in1k: they are not on this server'),
        (RING, 'sknet50.implus_in1k', 1, 'No weights of sknet50.implus_in1k: they can only be downloaded by hand.'),
    ],
)
def test_messages(path, name, scale, expected):
    answer = respond(ModelCache(), path and str(path), name, scale)
    assert expected in answer
    assert 'role="alert"' in answer
    assert str(ROOT) not in answer


def test_internal_error(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(analysis, 'analyse', lambda *arguments: 1 / 0)
        assert 'The server failed to answer' in respond(ModelCache(), str(RING), SHAPES, 1)
    answer = text_of(respond(ModelCache(), str(RING), SHAPES, 1))
    assert 'ring 92' in answer
    assert 'sknet_atto.shapes was trained on synthetic shapes' in answer


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (png(20_000, 10_000), 'bomb.png has too many pixels'),  # where Pillow itself refuses
        (png(8_000, 8_000), 'bomb.png has 8000 x 8000 pixels: 50 million at most'),
        (png(3_000, 100), 'the aspect ratio may be 16 at most'),
        (b'text', 'bomb.png: not an image that can be read'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'bomb.png: not an image that can be read'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n', 'bomb.png: not an image'),
        (RING.read_bytes()[:100], 'bomb.png: cannot be decoded'),
        (b'', 'bomb.png: the file is empty'),
    ],
)
def test_invalid_images(tmp_path, content, message):
    path = tmp_path / 'bomb.png'
    path.write_bytes(content)
    assert len(content) < 200_000
    with pytest.raises(UnreadableImageError, match=re.escape(message)) as caught:
        read_upload(path)
    assert str(tmp_path) not in str(caught.value)
    assert re.search(r'(Reduce it first|Crop it|Upload another file, such as a PNG or JPEG)\.$', str(caught.value))


def test_large_images_are_reduced_and_cached(tmp_path):
    path = photo(tmp_path, 2 * LIMITS.side, LIMITS.side)
    image = read_upload(path)
    assert image.size == (LIMITS.side, LIMITS.side // 2)
    path.unlink()
    assert read_upload(path) is image


@pytest.mark.deep
def test_slow_images_do_not_block_others(tmp_path, monkeypatch):
    """Nobody writes into the pipes, so that each keeps its process for as long as it may."""
    monkeypatch.setattr(uploads, 'LIMITS', replace(LIMITS, seconds=15))
    paths = [tmp_path / f'{number}.png' for number in range(2)]  # of two visitors
    for path in paths:
        os.mkfifo(path)
    read_upload(RING)  # so that the server of the processes runs
    with ThreadPoolExecutor(len(paths)) as pool:
        stalled = [pool.submit(read_upload, path) for path in paths]
        time.sleep(0.5)
        uploads._read.cache_clear()
        assert read_upload(SEVEN).size == (8, 8)
        assert not any(job.done() for job in stalled)
        for job in stalled:
            with pytest.raises(UnreadableImageError, match=r'\.png takes more than 768 MB or 15 seconds to decode'):
                job.result()


def test_model_cache(monkeypatch):
    loaded = []
    slow = threading.Event()

    def load(name):
        slow.wait(0.2)
        loaded.append(name)
        return torch.nn.Identity(), None

    monkeypatch.setattr(model_cache, 'load', load)
    cache = ModelCache(max_models=2)
    threads = [threading.Thread(target=cache.get, args=('a',)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ['a']
    slow.set()
    for name in ('b', 'a', 'c', 'a', 'b'):  # c drives b out, and b then a's elder, c
        cache.get(name)
    assert loaded == ['a', 'b', 'c', 'b']


def test_model_cache_retries(monkeypatch):
    cache = ModelCache()
    with pytest.raises(UnknownModelError):
        cache.get('sknet_atto.nothing')
    model = torch.nn.Identity()
    monkeypatch.setattr(model_cache, 'load', lambda name: (model, None))
    assert cache.get('sknet_atto.nothing').model is model


def test_offered_models():
    assert offered(SHAPES)[:2] == [SHAPES, 'sknet_atto.digits']
    assert offered('sknet50.implus_in1k')[:3] == ['sknet50.implus_in1k', 'sknet_atto.digits', SHAPES]
    assert sorted(offered(SHAPES)) == sorted(name for name, row in CHECKPOINTS.items() if row.has_classifier)


def test_unavailable_models_are_marked(monkeypatch):
    """The tests are offline, and the store is empty."""
    row = CHECKPOINTS['skresnet18.ra_in1k']
    assert dict(choices.choices([SHAPES, row.name])) == {SHAPES: SHAPES, 'skresnet18.ra_in1k (offline)': row.name}
    weights = timm.create_model(row.arch).state_dict()
    Store().put(row, weights, row.sources[0], sha256='0' * 64)
    assert choices.why_unavailable(row.name) is None
    bundled = [name for name, each in CHECKPOINTS.items() if each.bundled]
    assert offered(SHAPES)[len(bundled)] == row.name
    assert choices.why_unavailable('skresnet34.ra_in1k') == choices.OFFLINE
    monkeypatch.setattr(choices.constants, 'HF_HUB_OFFLINE', False)
    assert choices.why_unavailable('skresnet34.ra_in1k') is None
    assert choices.why_unavailable('sknet50.implus_in1k') == choices.MANUAL
    assert choices.why_unavailable('skresnet26') is None  # not of the table's weights


def test_examples():
    assert examples.example('sknet_atto.digits', '7') == SEVEN
    assert re.findall(r'data-example="(.*?)"', examples.buttons('sknet_atto.digits')) == list('0123456789')
    assert examples.buttons('resnest50d.in1k') == examples.buttons(SHAPES)
    for name in ('9999', '../7', ''):
        with pytest.raises(ValueError, match='has no example'):
            examples.example('sknet_atto.digits', name)


def test_table_and_charts():
    rows = checkpoint_table.rows()
    lines = {line[0]: line for line in map(checkpoint_table.cells, rows)}
    assert lines['skresnet34.ra_in1k'][1:5] == ('22.28', '3.664', '224', '76.96')
    assert lines['sknet_atto.digits'][5:] == ('360 held-out images of scikit-learn digits', 'apache-2.0', 'bundled')
    table = checkpoint_table.table(rows)
    assert table.count('<th scope="row">') == len(rows)
    assert '<th scope="row">skresnet34.ra_in1k</th><td data-column="params (M)">22.28</td>' in table
    html = charts.charts(rows)
    imagenet = [row for row in rows if row.dataset == 'ImageNet-1k validation' and row.top1]
    baselines = charts.baselines()
    assert html.count('title="') == 2 * (len(imagenet) + len(baselines))
    assert 'title="skresnet34.ra_in1k: 76.96 %, 22.3 parameters (millions)"' in html
    assert 'title="resnet50.tv2_in1k: 80.85 %, 4.09 GMACs"' in html
    assert f'{len(imagenet)} checkpoints and {len(baselines)} baselines' in html
    assert 'the most accurate is resnest269e.in1k.' in html
    places = [float(place) for place in re.findall(r'(?:left|bottom):([\d.]+)%', html)]
    assert min(places) >= 0
    assert max(places) <= 100


@pytest.mark.deep
def test_baselines():
    for point in charts.baselines():
        cfg = timm.get_pretrained_cfg(point.name)
        params, macs = costs.count(cfg.architecture, 1000, (3, 224, 224))
        assert (point.params, point.gmacs) == (params / 1e6, macs / 1e9)


@pytest.mark.deep
def test_labels_cover_nothing():
    names = ('a', 'b', 'c', 'base')
    kinds = ('sknet', 'sknet', 'sknet', 'baseline')
    points = [charts.Point(name * 5, kind, 80, 1, 1) for name, kind in zip(names, kinds, strict=True)]
    places = [(0.1, 0.5), (0.12, 0.5), (0.9, 0.4), (0.5, 0.9)]
    # a has a neighbour to the right and the edge to the left; b has room; c has the edge to the right
    assert charts.label_sides(points, places, 300, 300) == {1: 'right', 2: 'left', 3: 'right'}


@pytest.mark.deep
def test_maps():
    values = torch.tensor([[1.0, -1.0], [0.0, 0.25]])
    unit = analysis.UnitDifference(name='SK_2_1', unscaled=0, scaled=0, map=values)
    image = overlay(unit)
    side = image.width // 2
    corners = [image.getpixel((x + side // 2, y + side // 2)) for y in (0, side) for x in (0, side)]
    assert corners[0] == (234, 88, 12, 216)
    assert corners[1] == (37, 99, 235, 216)
    assert corners[2][3] == 0
    assert corners[3] == (234, 88, 12, 108)
    found = analysis.Analysis(
        scale=1, labels=('a',), probabilities=(1.0,), units=(unit,), seen=Image.new('RGB', (8, 8), 'red')
    )
    assert 'SK_2_1: the largest kernel contributes more at 50% of the positions' in maps(found)
    same = replace(found, units=(replace(unit, one_size=True),))
    assert 'the last branch contributes more' in maps(same)
    assert 'gives its last branch minus that of its first branch' in bars.answer(same, SHAPES)
