"""Models that are ready to call, and their transforms."""

import shutil

import pytest
import timm
import timm.data
import torch
from PIL import Image
from upstream_files import filled_weights

import timm_sk
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.errors import NoWeightsError, UnknownModelError
from timm_sk.factory import transforms
from timm_sk.inference.prediction import example_images
from timm_sk.pretrained import Store, bundled_folder

pytestmark = pytest.mark.deep

SEVEN = example_images('sknet_atto')[7]


def test_load(tmp_path):
    shutil.copytree(bundled_folder('sknet_atto.digits'), tmp_path / 'export')
    x = None
    for name in ('sknet_atto', 'sknet_atto.digits', str(tmp_path / 'export'), f'local-dir:{tmp_path / "export"}'):
        model, transform = timm_sk.load(name, device='cpu')
        assert not model.training
        own = transform(Image.open(SEVEN))
        x = own if x is None else x
        assert torch.equal(own, x)
        with torch.no_grad():
            assert model(x[None]).argmax() == 7
    half, _ = timm_sk.load('sknet_atto', device='cpu', dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    assert timm_sk.predict(half, SEVEN)[0].labels[0] == '7'
    backbone, _ = timm_sk.load('sknet_atto', features_only=True, device='cpu')
    assert len(backbone(x[None])) == len(backbone.feature_info.channels())
    with pytest.raises(UnknownModelError, match=r'Nearest: .*sknet_atto'):
        timm_sk.load('sknet_ato')
    with pytest.raises(NoWeightsError):
        timm_sk.load('skresnet50')
    assert timm_sk.load('skresnet50', pretrained=False, num_classes=3)[0].num_classes == 3
    with pytest.raises(TypeError, match='num_class'):
        timm_sk.load('sknet_atto', num_class=3)


def test_transform_is_timms():
    row = CHECKPOINTS['skresnet18.ra_in1k']
    Store().put(row, filled_weights(row), row.sources[0], sha256='0' * 64)
    image = Image.effect_noise((300, 250), 80).convert('RGB')
    for name in ('skresnet18', 'sknet_atto.digits'):
        model, transform = timm_sk.load(name, device='cpu')
        expected = timm.data.create_transform(**timm.data.resolve_data_config(model=model))(image)
        torch.testing.assert_close(transform(image), expected, rtol=0, atol=1e-6)
        assert torch.equal(transforms(name)(image), transform(image))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = Store().root / 'turned.png'
    image.save(path, exif=exif)
    upright = transform(image.rotate(180))
    torch.testing.assert_close(transform(Image.open(path)), upright)


def test_transform_for_other_channels():
    image = Image.merge('RGBA', [Image.new('L', (40, 40), value) for value in (0, 51, 102, 255)])
    for channels, expected in ((4, [-1, -0.6, -0.2, 1]), (1, [2 * 42 / 255 - 1])):
        model, transform = timm_sk.load('sknet_atto', in_chans=channels, device='cpu')
        x = transform(image)
        assert x.shape == (channels, 32, 32)
        assert x[:, 16, 16].tolist() == pytest.approx(expected, abs=5e-3)
        assert model(x[None]).shape == (1, 10)
