"""Weights reach the model from every source that timm has, and only the model's own do."""

import json
import os

import pytest
import timm
import timm.models
import torch
from hub_server import serve
from random_weights import fill_model
from subprocesses import run_python
from tiers import deep_except
from torch import nn
from variants import images

from timm_sk.errors import CorruptCheckpointError, MismatchedCheckpointError, NoWeightsError
from timm_sk.pretrained import bundled_folder, save_safetensors

NAME = 'sknet_atto'


def same_weights(model: nn.Module, other: nn.Module, *, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items() if not k.startswith(but))


@pytest.fixture
def weights_file(tmp_path):
    """Random weights of sknet_atto as a file."""
    path = tmp_path / 'weights.safetensors'
    save_safetensors(fill_model(timm.create_model(NAME)).eval().state_dict(), path)
    return path


def create_from(file, **kwargs):
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs).eval()


def test_bundled_weights_by_architecture_and_by_tag():
    folder = bundled_folder('sknet_atto.digits')
    bundled = timm.models.load_state_dict(str(folder / 'model.safetensors'))
    for name in ('sknet_atto', 'sknet_atto.digits'):
        model = timm.create_model(name, pretrained=True)
        assert list(model.state_dict()) == list(bundled)
        assert all(torch.equal(v, bundled[k]) for k, v in model.state_dict().items())
        assert (model.pretrained_cfg['architecture'], model.pretrained_cfg['tag']) == ('sknet_atto', 'digits')
        assert 'state_dict' not in model.pretrained_cfg


def test_overlay_file(weights_file):
    assert same_weights(create_from(weights_file), fill_model(timm.create_model(NAME)).eval())


def test_checkpoint_path(weights_file, tmp_path):
    assert same_weights(
        timm.create_model(NAME, checkpoint_path=str(weights_file)), fill_model(timm.create_model(NAME)).eval()
    )
    torch.save(
        {'state_dict': {f'module.{k}': v for k, v in fill_model(timm.create_model(NAME)).eval().state_dict().items()}},
        tmp_path / 'last.pth',
    )
    assert same_weights(
        timm.create_model(NAME, checkpoint_path=str(tmp_path / 'last.pth')), fill_model(timm.create_model(NAME)).eval()
    )


def test_local_dir_of_a_bundled_folder():
    model = timm.create_model(f'local-dir:{bundled_folder("sknet_atto.digits")}', pretrained=True)
    assert same_weights(model, timm.create_model('sknet_atto.digits', pretrained=True))
    assert list(model.pretrained_cfg['label_names']) == list('0123456789')


def test_saved_by_timm_and_loaded_again(tmp_path):
    model = fill_model(timm.create_model('skresnet18', num_classes=3)).eval()
    timm.models.save_for_hf(model, str(tmp_path / 'mine'), safe_serialization=True)
    assert same_weights(timm.create_model(f'local-dir:{tmp_path / "mine"}', pretrained=True), model)


@pytest.mark.deep
def test_hub_sources_through_the_real_client(tmp_path):
    """timm's own id for a default tag, and an id that a user names; each in a process, with a cold cache."""
    model = fill_model(timm.create_model('skresnet18')).eval()
    for repo in ('timm/skresnet18.ra_in1k', 'somebody/finetuned'):
        timm.models.save_for_hf(model, str(tmp_path / 'hub' / repo), safe_serialization=True)
    save_safetensors(dict(logits=model(images())), tmp_path / 'expected.safetensors')
    code = """
import sys, timm, torch, timm_sk
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[2])
from variants import images
for name in ('skresnet18', 'skresnet18.ra_in1k', 'hf-hub:somebody/finetuned'):
    model = timm.create_model(name, pretrained=True).eval()
    assert type(model.layer1[0]).__module__.startswith('timm_sk.')
    with torch.no_grad():
        torch.testing.assert_close(model(images()), load_file(sys.argv[1])['logits'])
    print(model.pretrained_cfg['hf_hub_id'], end=' ')
"""
    with serve(tmp_path / 'hub') as endpoint:
        arguments = ('-c', code, str(tmp_path / 'expected.safetensors'), os.path.dirname(os.path.dirname(__file__)))
        online = dict(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1', HF_HOME=str(tmp_path / 'home'))
        done = run_python(*arguments, **online)
    assert done.stdout == 'timm/skresnet18.ra_in1k timm/skresnet18.ra_in1k somebody/finetuned ', done.stderr


@pytest.mark.parametrize('in_chans', [1, 4])
def test_pretrained_stem_is_adapted_to_the_channels(weights_file, in_chans):
    original, model = create_from(weights_file), create_from(weights_file, in_chans=in_chans)
    expected = timm.models.adapt_input_conv(in_chans, original.conv1[0].weight)
    assert torch.equal(model.conv1[0].weight, expected)
    assert same_weights(model, original, but=('conv1.0.weight',))


@pytest.mark.parametrize('name', deep_except(['skresnet18'], ['skresnet18', 'skresnet50d']))
def test_pretrained_stems_of_timms_names_are_adapted(name, tmp_path):
    original = fill_model(timm.create_model(name))
    save_safetensors(original.state_dict(), tmp_path / 'weights.safetensors')
    overlay = dict(file=str(tmp_path / 'weights.safetensors'))
    for in_chans in (1, 4):
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans)
        stem = model.pretrained_cfg['first_conv']
        expected = timm.models.adapt_input_conv(in_chans, original.get_submodule(stem).weight)
        assert torch.equal(model.get_submodule(stem).weight, expected)
        assert same_weights(model, original, but=(f'{stem}.weight',))


@pytest.mark.parametrize('kwargs', [dict(num_classes=0), dict(num_classes=3), dict(features_only=True)])
def test_only_the_classifier_may_be_left_out(weights_file, kwargs):
    original, model = create_from(weights_file), create_from(weights_file, **kwargs)
    assert same_weights(model, original, but=('fc.',))


def cfg_of(source, weights_file):
    """A pretrained_cfg as a caller may write it, in every type that timm takes."""
    cfg = timm.get_pretrained_cfg(NAME).to_dict()
    return {
        'dict': {**cfg, 'file': str(weights_file)},
        'object': timm.models.PretrainedCfg(**{**cfg, 'file': str(weights_file)}),
        'state_dict': {**cfg, 'state_dict': timm.models.load_state_dict(str(weights_file))},
        'registered': cfg,
        'tag': 'digits',
    }[source]


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=3), dict(in_chans=1), dict(features_only=True)])
@pytest.mark.parametrize('source', ['dict', 'object', 'state_dict', 'registered', 'tag'])
def test_pretrained_cfg_of_the_caller(weights_file, source, kwargs):
    bundled = bundled_folder('sknet_atto.digits') / 'model.safetensors'
    original = create_from(bundled if source in ('registered', 'tag') else weights_file)
    cfg = cfg_of(source, weights_file)
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg=cfg, **kwargs)
    assert same_weights(model, original, but=('fc.', *(['conv1.0.weight'] if 'in_chans' in kwargs else [])))
    untrained = timm.create_model(NAME, pretrained_cfg=cfg, **kwargs)
    given, expected = dict(model.pretrained_cfg), dict(untrained.pretrained_cfg)
    tensors, expected_tensors = given.pop('state_dict', {}), expected.pop('state_dict', {})
    assert given == expected
    assert model.default_cfg is model.pretrained_cfg
    assert list(tensors) == list(expected_tensors)  # loading takes nothing out of them, nor adapts them
    assert all(torch.equal(tensor, expected_tensors[key]) for key, tensor in tensors.items())


def test_weights_of_a_folder_are_adapted(tmp_path):
    original = fill_model(timm.create_model(NAME, num_classes=4))
    timm.models.save_for_hf(original, str(tmp_path / 'mine'), safe_serialization=True)
    name = f'local-dir:{tmp_path / "mine"}'
    assert same_weights(timm.create_model(name, pretrained=True), original)
    assert same_weights(timm.create_model(name, pretrained=True, num_classes=3), original, but=('fc.',))
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 3), feature_cls='dict')
    assert same_weights(features, original)
    assert features.pretrained_cfg['source'] == 'local-dir'
    model = timm.create_model(name, pretrained=True, in_chans=1)
    assert torch.equal(model.conv1[0].weight, timm.models.adapt_input_conv(1, original.conv1[0].weight))
    assert same_weights(model, original, but=('conv1.0.weight',))


@pytest.mark.parametrize(
    'kwargs', [dict(), dict(pretrained_strict=False), dict(num_classes=3), dict(features_only=True)]
)
@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda sd: sd.pop('layer1.0.conv2.attn.bn.weight'), 'missing: layer1.0.conv2.attn.bn.weight'),
        (lambda sd: sd.pop('conv1.0.weight'), 'missing: conv1.0.weight'),
        (lambda sd: sd.update(extra=torch.zeros(1)), 'unexpected: extra'),
        (lambda sd: sd.update({'conv1.0.weight': torch.zeros(9, 3, 3, 3)}), r'conv1.0.weight \(\[9, 3, 3, 3\] instead'),
        (lambda sd: sd.update({'bn1.bias': torch.zeros(7)}), r'of another shape: bn1.bias \(\[7\] instead of \[16\]\)'),
        (lambda sd: [sd.pop(k) for k in list(sd) if k.startswith('layer4')], r'missing: (layer4\S+, ){4}\S+ and \d+ m'),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, kwargs, damage, message):
    state_dict = dict(fill_model(timm.create_model(NAME)).eval().state_dict())
    damage(state_dict)
    save_safetensors(state_dict, tmp_path / 'damaged.safetensors')
    with pytest.raises(MismatchedCheckpointError, match=message):
        create_from(tmp_path / 'damaged.safetensors', **kwargs)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    torch.save({'epoch': 1, 'weights': {}}, tmp_path / 'odd.pth')
    with pytest.raises(MismatchedCheckpointError, match=r'not a state dict\. Not tensors: epoch, weights'):
        create_from(tmp_path / 'odd.pth')
    with pytest.raises(CorruptCheckpointError, match=r'gone\.safetensors is missing'):
        create_from(tmp_path / 'gone.safetensors')


def test_a_source_that_the_caller_names_wins_over_the_bundled_file():
    with pytest.raises(OSError, match=r'(cannot find the requested files|outgoing traffic)'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id='somebody/else'))


def test_a_classifier_may_not_be_missing_where_it_is_used(tmp_path):
    state_dict = {
        k: v for k, v in fill_model(timm.create_model(NAME)).eval().state_dict().items() if not k.startswith('fc.')
    }
    save_safetensors(state_dict, tmp_path / 'headless.safetensors')
    with pytest.raises(MismatchedCheckpointError, match=r'missing: fc\.weight, fc\.bias'):
        create_from(tmp_path / 'headless.safetensors')
    assert create_from(tmp_path / 'headless.safetensors', num_classes=3).num_classes == 3


def test_counters_of_norms_may_be_missing(tmp_path):
    state_dict = {
        k: v
        for k, v in fill_model(timm.create_model(NAME)).eval().state_dict().items()
        if not k.endswith('num_batches_tracked')
    }
    save_safetensors(state_dict, tmp_path / 'old.safetensors')
    assert same_weights(create_from(tmp_path / 'old.safetensors'), fill_model(timm.create_model(NAME)).eval())


@pytest.mark.parametrize('name', ['skresnet50', 'skresnet50d.untrained'])
def test_no_weights_no_model(name):
    with pytest.raises(NoWeightsError, match=r'of skresnet50d?\.untrained\. Use `pretrained=False`'):
        timm.create_model(name, pretrained=True)
    assert timm.create_model(name, pretrained=False, device='meta')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove'])
def test_a_damaged_bundled_file_is_refused(tmp_path, monkeypatch, damage):
    folder = tmp_path / 'sknet_atto.digits'
    folder.mkdir()
    content = bytearray((bundled_folder('sknet_atto.digits') / 'model.safetensors').read_bytes())
    content[-1000] ^= 1
    if damage != 'remove':
        (folder / 'model.safetensors').write_bytes(content if damage == 'flip' else content[:-4])
    monkeypatch.setattr('timm_sk.pretrained.resolve.bundled_folder', lambda name: tmp_path / name)
    with pytest.raises(CorruptCheckpointError, match=rf'{folder}/model.safetensors.*(is damaged|is missing)'):
        timm.create_model('sknet_atto', pretrained=True)


def test_config_is_not_changed_by_loading():
    model = timm.create_model('sknet_atto.digits', pretrained=True)
    assert json.dumps(model.pretrained_cfg) == json.dumps(timm.get_pretrained_cfg('sknet_atto').to_dict())
