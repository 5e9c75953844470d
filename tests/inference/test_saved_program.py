"""Programs of torch in files: what is checked before torch sees the file."""

import json
import os

import pytest
import torch
from subprocesses import run_python
from timm_pair import assert_same, images, pair

import timm_sk
from timm_sk.inference.saved_program import header_path, load_program


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    model = pair('skresnext50_32x4d')[0].float()
    path = tmp_path_factory.mktemp('programs') / 'net.pt2'
    assert timm_sk.export(model, path, input_size=(3, 32, 32)) == path
    return model, path


@torch.no_grad()
def test_exported_program(exported):
    model, path = exported
    program = load_program(path, trusted=True)
    for count in (1, 5):
        x = images(count).float()
        assert_same(program(x), model(x), 1e-5)
    with pytest.raises(ValueError, match='with constant weights'):
        program.train()


def test_program_must_be_trusted(exported, monkeypatch):
    monkeypatch.setattr(torch.export, 'load', lambda *args: pytest.fail('loaded'))
    with pytest.raises(ValueError, match=r'holds code.*trusted=True'):
        load_program(exported[1])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(torch='2.0.0'), r'made by torch 2\.0\.0.*export it again'),
        (dict(instructions=['avx9000'], processor='Z80'), 'compiled for Z80; this processor lacks avx9000'),
        (dict(aoti=True, processor='Plan9 z80: Z80'), 'compiled for Plan9 z80: Z80, this is'),
        (dict(format_version=2), 'is not a header of this version'),
        (dict(sha256='0' * 64), 'damaged or was replaced'),
        (dict(metadata=None), r'is not a header.*it lacks fields'),
    ],
)
def test_header_is_checked_first(exported, tmp_path, monkeypatch, change, message):
    path = tmp_path / 'net.pt2'
    os.link(exported[1], path)
    header_path(path).write_text(json.dumps(json.loads(header_path(exported[1]).read_text()) | change))
    monkeypatch.setattr(torch.export, 'load', lambda *args: pytest.fail('loaded'))
    with pytest.raises(ValueError, match=message):
        load_program(path, trusted=True)


def test_truncated_program_and_missing_header(exported, tmp_path):
    path = tmp_path / 'net.pt2'
    path.write_bytes(exported[1].read_bytes()[:-1])
    with pytest.raises(ValueError, match='is not a header'):
        load_program(path, trusted=True)
    header_path(path).write_text(header_path(exported[1]).read_text())
    with pytest.raises(ValueError, match='damaged'):
        load_program(path, trusted=True)
    with pytest.raises(ValueError, match='no such file'):
        load_program(tmp_path / 'none.pt2', trusted=True)


@torch.no_grad()
def test_dynamic_size(tmp_path):
    model = pair('resnest14d')[0].float()
    path = timm_sk.export(model, tmp_path / 'net.pt2', input_size=(3, 64, 64), dynamic_size=True)
    x = images(3, 64).float()[:, :, :47, :33]
    assert_same(timm_sk.load_deployed(path, trusted=True)(x), model(x), 1e-5)
    with pytest.raises(ValueError, match=r'net\.pt2 does not take this input'):
        timm_sk.load_deployed(path, trusted=True)(x[:, :2])
    with pytest.raises(ValueError, match='is for torch only: omit engine'):
        timm_sk.load_deployed(path, engine='onnxruntime', trusted=True)


@torch.no_grad()
def test_save_deployed(tmp_path):
    model = pair('skresnet18')[0].float()
    deployed = timm_sk.deploy(model, input_size=(3, 32, 32), batch_size=2, compile=False)
    program = timm_sk.load_deployed(deployed.save(tmp_path / 'net.pt2'), trusted=True)
    assert_same(program(images(3).float()), model(images(3).float()), 1e-5)
    halved = timm_sk.deploy(model.bfloat16(), input_size=(3, 32, 32), compile=False)
    with pytest.raises(ValueError, match=r'for the CPU in float32, got torch\.bfloat16'):
        halved.save(tmp_path / 'halved.pt2')


LOADED = """
import sys, torch, timm_sk
torch.set_num_threads(1)
program = timm_sk.load_deployed(sys.argv[1], trusted=True)
for x, expected in torch.load(sys.argv[2], weights_only=True):
    assert (program(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
"""


@pytest.mark.deep
@pytest.mark.skipif(os.name != 'posix', reason='needs a C++ compiler')
@torch.no_grad()
def test_compiled_model_in_another_process(tmp_path):
    model = pair('skresnext50_32x4d')[0].float()
    path = timm_sk.deploy(model, input_size=(3, 32, 32), batch_size=2).save(tmp_path / 'net.pt2')
    assert json.loads(header_path(path).read_text())['aoti']
    torch.save([(x, model(x)) for x in (images(1).float(), images(5).float())], tmp_path / 'outputs.pt')
    done = run_python('-c', LOADED, str(path), str(tmp_path / 'outputs.pt'), CXX='/bin/false', CC='/bin/false')
    assert done.returncode == 0, done.stderr
