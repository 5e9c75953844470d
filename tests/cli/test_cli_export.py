"""`timm-sk export`: every kind of file, and what it refuses."""

import json

import pytest
import timm
import torch
from drawn_data import drawn, write_folder
from typer.testing import CliRunner

import timm_sk
from timm_sk.cli import app
from timm_sk.data import shapes

NAME = 'sknet_atto.shapes'


def timm_sk_export(*arguments):
    done = CliRunner().invoke(app, ['export', *map(str, arguments)])
    return done.exit_code, ' '.join(done.output.split())


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('photos') / 'photos', drawn(6, size=40))


def test_refused_in_one_line(tmp_path, photos, monkeypatch):
    taken = tmp_path / 'taken.pt2'
    taken.write_bytes(b'mine')
    new, few = tmp_path / 'new.onnx', write_folder(tmp_path / 'few', drawn(5))
    for arguments, message in (
        ((NAME, taken), 'exists already'),
        ((NAME, tmp_path / 'net.pth'), 'no known ending'),
        ((NAME, new, '--format', 'tflite'), 'Unknown format'),
        ((NAME, new, '--int8'), '--int8 and --calibrate FOLDER go together'),
        ((NAME, new, '--calibrate', photos), '--int8 and --calibrate FOLDER go together'),
        ((NAME, new, '--int8', '--calibrate', few), 'at least 16 images, got 15'),
        ((NAME, new, '--int8', '--calibrate', tmp_path / 'none'), 'none: no such folder'),
        ((NAME, taken, '--int8', '--calibrate', photos), 'exists already'),
        ((NAME, tmp_path / 'net.pt2', '--int8', '--calibrate', photos), '--int8 is for .onnx and .xml'),
        ((NAME, new, '--int8', '--calibrate', photos, '--embed-preprocessing'), 'omit --embed-preprocessing'),
        ((NAME, new, '--features-only', '--embeddings'), 'exclude each other'),
        ((NAME, tmp_path / 'net.pt2', '--half'), 'half is for models in float32 in format openvino'),
        (('skresnet35', new), 'skresnet35'),
    ):
        code, output = timm_sk_export(*arguments)
        assert (code, output.startswith('timm-sk: ')) == (1, True), output
        assert message in output
    monkeypatch.setattr('timm_sk.optional_packages.find_spec', lambda name: None)
    for ending, extra in (('onnx', 'onnx'), ('xml', 'openvino')):
        code, output = timm_sk_export(NAME, tmp_path / f'new.{ending}')
        assert (code, f'is not installed: pip install "timm_sk[{extra}]".' in output) == (1, True), output
    assert {path.name for path in tmp_path.iterdir()} == {'taken.pt2', 'few'}
    assert taken.read_bytes() == b'mine'


@torch.no_grad()
def test_program_and_its_header(tmp_path):
    code, output = timm_sk_export(NAME, tmp_path / 'net.pt2')
    assert code == 0, output
    assert output.startswith(f'{tmp_path / "net.pt2"}: ')
    assert {path.name for path in tmp_path.iterdir()} == {'net.pt2', 'net.pt2.json'}
    header = json.loads((tmp_path / 'net.pt2.json').read_text())
    assert header['metadata']['label_names'] == list(shapes.CLASS_NAMES)
    model, x = timm.create_model(NAME, pretrained=True).eval(), torch.rand(3, 3, 32, 32)
    found = timm_sk.load_deployed(tmp_path / 'net.pt2', trusted=True)(x)
    assert (found - model(x)).abs().max() <= 1e-5 * model(x).abs().max()


@pytest.mark.integration
@torch.no_grad()
def test_every_kind_of_output(tmp_path, photos):
    pytest.importorskip('openvino')
    x = torch.rand(3, 3, 32, 32)
    model = timm.create_model(NAME, pretrained=True).eval()
    pooled, maps = (
        timm.create_model(NAME, pretrained=True, **made).eval()
        for made in (dict(num_classes=0), dict(features_only=True))
    )
    folder = timm_sk.pretrained.bundled_folder(NAME)
    for ending in ('onnx', 'xml'):
        for name, options, expected in (
            (NAME, ['--dynamic-size'], [model(x)]),
            (f'local-dir:{folder}', [], [model(x)]),
            (NAME, ['--embeddings'], [pooled(x)]),
            (NAME, ['--features-only'], maps(x)),
        ):
            path = tmp_path / f'{len(options)}{"".join(options)}.{ending}'
            code, output = timm_sk_export(name, path, *options, '--overwrite')
            assert code == 0, output
            found = timm_sk.load_deployed(path)(x)
            found = found if isinstance(found, list) else [found]
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    full, half = tmp_path / 'full.xml', tmp_path / 'half.xml'
    assert (timm_sk_export(NAME, full)[0], timm_sk_export(NAME, half, '--half')[0]) == (0, 0)
    sizes = [path.with_suffix('.bin').stat().st_size for path in (half, full)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    code, output = timm_sk_export(NAME, tmp_path / 'int8.onnx', '--int8', '--calibrate', photos)
    assert code == 0, output
    assert 'of 18 calibration images keep their top-1' in output
    assert timm_sk.load_deployed(tmp_path / 'int8.onnx').metadata['int8']['images'] == 18
