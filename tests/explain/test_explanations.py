"""Explanations of images, compared with the attention of each crop."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils import reparameterize_model
from variants import LSK, filled

import timm_sk
from timm_sk import explain, shapes
from timm_sk.explain.report import NUMBERS, PAGE, write_explanation


@pytest.fixture(scope='module')
def model():
    return timm.create_model('sknet_atto.shapes', pretrained=True).eval()


def drawn(count, size=48):
    return [Image.fromarray(pixels) for pixels in shapes.draw(count, seed=3, size=size)[0]]


def test_numbers_of_each_crop(model):
    images = drawn(3)
    found = explain.explain_images(model, images, scales=(1, 2), batch_size=4)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    assert found.units == ('SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1')
    assert list(found.attention) == ['SK_2_1', 'SK_3_1', 'SK_5_1']
    assert found.kernel_extents == ((3, 5),) * 4
    assert found.scales == (1.0, 2.0)
    for p, image in enumerate(images):
        for s, scale in enumerate(found.scales):
            x = transform(explain.zoom_in(image, scale))[None]
            units = {unit.name: unit.weights[0] for unit in timm_sk.attention_weights(model, x)}
            for name, weights in found.attention.items():
                np.testing.assert_allclose(weights[p, s], units[name], atol=2e-5)
            large = torch.stack([weights[1].mean() for weights in units.values()])
            np.testing.assert_allclose(found.differences[p, s], 2 * large - 1, atol=2e-5)
            np.testing.assert_allclose(found.expected_kernel_extents[p, s], 3 + 2 * large, atol=2e-5)
            fields = torch.cat(list(explain.receptive_fields(model, x).values()))
            np.testing.assert_allclose(found.receptive_fields[p, s], fields, rtol=0.02)


def test_maps_of_lsknet(tmp_path):
    model = filled(LSK, pretrained_cfg_overlay=dict(input_size=(3, 64, 64)))
    images = drawn(2, size=96)
    found = explain.explain_images(model, images, scales=(1, 2), batch_size=3)
    assert list(found.attention) == ['LSK_1_1', 'LSK_2_2', 'LSK_4_1']
    assert [maps.shape for maps in found.attention.values()] == [(2, 2, 2, side, side) for side in (16, 8, 2)]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    x = transform(explain.zoom_in(images[1], 2))[None]
    for u, unit in enumerate(timm_sk.attention_weights(model, x)):
        small, large = unit.weights[0]
        np.testing.assert_allclose(found.differences[1, 1, u], (large - small).mean(), atol=1e-4)
        expected = ((5 * small + 23 * large) / (small + large)).mean()
        np.testing.assert_allclose(found.expected_kernel_extents[1, 1, u], expected, atol=1e-3)
        if unit.name in found.attention:
            np.testing.assert_allclose(found.attention[unit.name][1, 1], unit.weights[0], atol=1e-4)
    pytest.importorskip('matplotlib')
    write_explanation(tmp_path / 'new', found, images, ['a.png', 'b.png'], model_name=LSK)
    with (tmp_path / 'new' / NUMBERS).open() as file:
        rows = [row for row in csv.DictReader(file) if row['quantity'] == 'attention' and row['unit'] == 'LSK_4_1']
    assert [row['channel'] for row in rows[:5]] == ['1/1', '1/2', '2/1', '2/2', '1/1']
    assert {row['kernel_extent'] for row in rows} == {'5', '23'}
    assert float(rows[1]['value']) == pytest.approx(float(found.attention['LSK_4_1'][0, 0, 0, 0, 1]), rel=1e-4)
    assert 'the attention of each position in LSK_1_1' in (tmp_path / 'new' / PAGE).read_text()
    assert (tmp_path / 'new' / '01-a-channels.png').stat().st_size > 10_000


@pytest.mark.parametrize('fold', [reparameterize_model, lambda model: timm_sk.deploy(model, compile=False)])
def test_folded_models(model, fold):
    expected = explain.explain_images(model, drawn(2))
    found = explain.explain_images(fold(model), drawn(2))
    assert found.units == expected.units
    np.testing.assert_allclose(found.differences, expected.differences, atol=1e-5)
    np.testing.assert_allclose(found.receptive_fields, expected.receptive_fields, rtol=0.02)


@pytest.mark.parametrize(
    ('name', 'branches'),
    [('sknet50_3path', 3), ('resnest50d_4s2x40d', 4), ('resnest50d_1s4x24d', 1), ('sk_shufflenetv2_x0_5', 2)],
)
def test_any_number_of_branches(name, branches):
    image = Image.effect_noise((40, 40), 60)
    model = timm.create_model(name, pretrained_cfg_overlay=dict(input_size=(3, 32, 32)))
    units = explain.units.unit_names(model)
    found = explain.explain_images(
        model, [image], scales=(1,), units=units[:1], with_receptive_fields=False, names=['noise']
    )
    assert model.training
    assert found.receptive_fields is None
    assert found.attention[units[0]].shape[:3] == (1, 1, branches)
    assert np.isnan(found.differences).all() == (branches == 1)


def test_invalid_arguments(model):
    with pytest.raises(ValueError, match='No image'):
        explain.explain_images(model, [])
    with pytest.raises(ValueError, match=r'^image 2: 16x16 pixels are fewer'):
        explain.explain_images(model, [*drawn(1), *drawn(1, size=16)])
