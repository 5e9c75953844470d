"""Checkpoints of ResNeSt: the authors' release through timm's own loader, and other layouts after renaming."""

import pytest
import timm
import timm.models
import torch
from hub_server import serve
from oracles import load_oracle
from random_weights import fill_model
from subprocesses import run_python
from variants import TIMM_RESNESTS, filled, shallow, upstream

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained import save_safetensors, to_our_layout
from timm_sk.pretrained.convert import LAYOUTS

RELEASE = 'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1'
FILES = {
    'resnest50d': 'resnest50-528c19ca',
    'resnest101e': 'resnest101-22405ba7',
    'resnest200e': 'resnest200-75117900',
    'resnest269e': 'resnest269-0cc87c48',
    'resnest50d_1s1x64d': 'resnest50_fast_1s1x64d-d8fbf808',
    'resnest50d_2s1x64d': 'resnest50_fast_2s1x64d-44938639',
    'resnest50d_4s1x64d': 'resnest50_fast_4s1x64d-f74f3fc3',
    'resnest50d_1s2x40d': 'resnest50_fast_1s2x40d-32830b84',
    'resnest50d_2s2x40d': 'resnest50_fast_2s2x40d-9d126481',
    'resnest50d_4s2x40d': 'resnest50_fast_4s2x40d-41d14ed0',
    'resnest50d_1s4x24d': 'resnest50_fast_1s4x24d-d4a4f76f',
}


@pytest.mark.parametrize(('name', 'file'), FILES.items())
def test_files_of_the_authors_release(name, file):
    source = next(source for source in CHECKPOINTS[f'{name}.in1k'].sources if source.kind == 'url')
    assert (source.location, source.sha256_prefix) == (f'{RELEASE}/{file}.pth', file[-8:])
    if name not in TIMM_RESNESTS:
        cfg = timm.models.get_pretrained_cfg(name)
        assert (cfg.tag, cfg.hf_hub_id, cfg.interpolation, cfg.crop_pct) == ('in1k', None, 'bicubic', 0.875)
        assert cfg.url == source.location
        assert cfg.has_weights


@pytest.mark.parametrize('name', TIMM_RESNESTS)
def test_timms_cfgs_and_the_authors_files(name):
    ours = timm.create_model(name, device='meta')
    theirs = upstream(name, device='meta')
    assert ours.pretrained_cfg == theirs.pretrained_cfg
    row = CHECKPOINTS[f'{name}.{ours.pretrained_cfg["tag"]}']
    hub, *others = row.sources
    assert hub.location == f'timm/{row.name}' == ours.pretrained_cfg['hf_hub_id']
    assert others[0].kind == 'url'
    assert others[0].location.startswith(RELEASE) == ('gluon' not in row.tag)


@pytest.mark.deep
def test_authors_file_through_timms_loader(tmp_path):
    """A release file as the authors write them, a bare state dict, from a loopback server, with a cold cache."""
    model = fill_model(timm.create_model('resnest50d_1s1x64d'))
    folder = tmp_path / 'served' / 'a' / 'b'
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / 'resnest50_fast_1s1x64d-d8fbf808.pth')
    save_safetensors(model.state_dict(), tmp_path / 'expected.safetensors')
    code = """
import sys, timm, timm_sk, torch
url, expected = sys.argv[1:]
model = timm.create_model('resnest50d_1s1x64d', pretrained=True, pretrained_cfg_overlay=dict(url=url))
expected = timm.models.load_state_dict(expected)
assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
print(model.pretrained_cfg['url'])
"""
    with serve(tmp_path / 'served') as endpoint:
        url = f'{endpoint}/a/b/resolve/main/resnest50_fast_1s1x64d-d8fbf808.pth'
        expected = str(tmp_path / 'expected.safetensors')
        done = run_python('-c', code, url, expected, TORCH_HOME=str(tmp_path / 'home'))
    assert done.stdout.splitlines()[-1:] == [url], done.stderr


def test_gluon_names(tmp_path):
    model = filled('resnest14d')
    theirs = LAYOUTS['Gluon ResNeSt'].to_theirs(model.state_dict())
    for name, state_dict in (('timm', model.state_dict()), ('gluon', theirs)):
        save_safetensors(state_dict, tmp_path / f'{name}.safetensors')
        overlay = dict(file=str(tmp_path / f'{name}.safetensors'))
        loaded = shallow('resnest14d', pretrained=True, pretrained_cfg_overlay=overlay)
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('attn_layer', [None, 'se'])
def test_timms_layout_is_unchanged(attn_layer):
    model = filled('resnest14d', block_args=dict(radix=2, avd=True, attn_layer=attn_layer))
    state_dict = model.state_dict()
    passed = to_our_layout(state_dict, arch='resnest14d')
    assert list(passed) == list(state_dict)
    assert all(passed[key] is tensor for key, tensor in state_dict.items())


@pytest.mark.parametrize(
    ('oracle', 'arch'),
    [
        ('mindcv_resnest50', 'resnest50d'),
        ('gluon_resnest50', 'resnest50_mindcv'),
        ('mindcv_skresnet18', 'skresnet18'),
        ('caffe_sknet50', 'skresnext50_32x4d'),
    ],
)
def test_layouts_of_nets_with_other_pools(oracle, arch, tmp_path):
    torch.save(load_oracle(oracle).weights, tmp_path / 'theirs.pth')
    overlay = dict(file=str(tmp_path / 'theirs.pth'))
    with pytest.raises(MismatchedCheckpointError, match='have other pools'):
        timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay, device='meta')
