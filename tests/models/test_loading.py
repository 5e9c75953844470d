"""Weights reach the model from every source that timm has, and only the model's own do."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models
import torch
from oracles import load_oracle
from random_weights import fill_model
from tiers import deep_except
from torch import Tensor, nn
from variants import LSK, MOBILE, SHUFFLE

from timm_sk.errors import CorruptCheckpointError, MismatchedCheckpointError, NoWeightsError
from timm_sk.pretrained import bundled_folder, save_safetensors

NAME = 'sknet_atto'
BUNDLED = bundled_folder('sknet_atto.digits')


def random_net(name: str, **kwargs: Any) -> nn.Module:
    return fill_model(timm.create_model(name, **kwargs)).eval()


@cache
def weights() -> dict[str, Tensor]:
    """Random weights of sknet_atto."""
    return random_net(NAME).state_dict()


def has_weights(model: nn.Module, expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    """Whether a model has these weights, except for keys that begin so."""
    return all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if not k.startswith(but))


def create_from(source: Path | dict[str, Tensor], folder: Path, name: str = NAME, **kwargs: Any) -> nn.Module:
    """A pretrained model from a file, or from tensors that are written into one."""
    if isinstance(source, dict):
        save_safetensors(source, folder / 'weights.safetensors')
        source = folder / 'weights.safetensors'
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(source)), **kwargs).eval()


@pytest.mark.parametrize('name', ['sknet_atto', 'sknet_atto.digits'])
def test_bundled_weights(name):
    bundled = timm.models.load_state_dict(str(BUNDLED / 'model.safetensors'))
    model = timm.create_model(name, pretrained=True)
    assert list(model.state_dict()) == list(bundled)
    assert has_weights(model, bundled)
    assert (model.pretrained_cfg['architecture'], model.pretrained_cfg['tag']) == ('sknet_atto', 'digits')
    assert json.dumps(model.pretrained_cfg) == json.dumps(timm.get_pretrained_cfg('sknet_atto').to_dict())


def test_checkpoint_path(tmp_path):
    save_safetensors(weights(), tmp_path / 'weights.safetensors')
    torch.save({'state_dict': {f'module.{key}': tensor for key, tensor in weights().items()}}, tmp_path / 'last.pth')
    for file in ('weights.safetensors', 'last.pth'):
        assert has_weights(timm.create_model(NAME, checkpoint_path=str(tmp_path / file)), weights())


@pytest.mark.parametrize('in_chans', [1, 4])
@pytest.mark.parametrize(
    'name', deep_except([NAME, 'skresnet18'], [NAME, 'skresnet18', 'skresnet50d', SHUFFLE, MOBILE, LSK])
)
def test_first_convolution_is_adapted_to_in_chans(name, in_chans, tmp_path):
    expected = random_net(name).state_dict()
    model = create_from(expected, tmp_path, name, in_chans=in_chans)
    stem = f'{model.pretrained_cfg["first_conv"]}.weight'
    assert torch.equal(model.get_parameter(stem), timm.models.adapt_input_conv(in_chans, expected[stem]))
    assert has_weights(model, expected, but=(stem,))


@pytest.mark.parametrize('kwargs', [dict(num_classes=0), dict(num_classes=3), dict(features_only=True)])
def test_classifier_is_left_out(tmp_path, kwargs):
    assert has_weights(create_from(weights(), tmp_path, **kwargs), weights(), but=('fc.',))


def cfg_of(source: str, file: Path) -> Any:
    """A pretrained_cfg as a caller may write it, in every type that timm takes."""
    cfg = timm.get_pretrained_cfg(NAME).to_dict()
    return {
        'dict': {**cfg, 'file': str(file)},
        'object': timm.models.PretrainedCfg(**{**cfg, 'file': str(file)}),
        'state_dict': {**cfg, 'state_dict': timm.models.load_state_dict(str(file))},
        'registered': cfg,
        'tag': 'digits',
    }[source]


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=3), dict(in_chans=1), dict(features_only=True)])
@pytest.mark.parametrize('source', ['dict', 'object', 'state_dict', 'registered', 'tag'])
def test_pretrained_cfg_of_the_caller(tmp_path, source, kwargs):
    save_safetensors(weights(), tmp_path / 'weights.safetensors')
    bundled = timm.models.load_state_dict(str(BUNDLED / 'model.safetensors'))
    cfg = cfg_of(source, tmp_path / 'weights.safetensors')
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg=cfg, **kwargs)
    but = ('fc.', *(['conv1.0.weight'] if 'in_chans' in kwargs else []))
    assert has_weights(model, bundled if source in ('registered', 'tag') else weights(), but=but)
    untrained = timm.create_model(NAME, pretrained_cfg=cfg, **kwargs)
    given, expected = dict(model.pretrained_cfg), dict(untrained.pretrained_cfg)
    tensors, expected_tensors = given.pop('state_dict', {}), expected.pop('state_dict', {})
    assert given == expected
    assert model.default_cfg is model.pretrained_cfg
    assert list(tensors) == list(expected_tensors)  # loading takes nothing out of them, nor adapts them
    assert all(torch.equal(tensor, expected_tensors[key]) for key, tensor in tensors.items())


def test_folder_saved_by_timm(tmp_path):
    original = random_net(NAME, num_classes=4)
    expected = original.state_dict()
    timm.models.save_for_hf(original, str(tmp_path / 'mine'), safe_serialization=True)
    name = f'local-dir:{tmp_path / "mine"}'
    assert has_weights(timm.create_model(name, pretrained=True), expected)
    assert has_weights(timm.create_model(name, pretrained=True, num_classes=3), expected, but=('fc.',))
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 3), feature_cls='dict')
    assert has_weights(features, expected)
    assert features.pretrained_cfg['source'] == 'local-dir'
    model = timm.create_model(name, pretrained=True, in_chans=1)
    assert torch.equal(model.conv1[0].weight, timm.models.adapt_input_conv(1, expected['conv1.0.weight']))
    assert has_weights(model, expected, but=('conv1.0.weight',))


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
def test_weights_of_another_model(tmp_path, kwargs, damage, message):
    state_dict = dict(weights())
    damage(state_dict)
    with pytest.raises(MismatchedCheckpointError, match=message):
        create_from(state_dict, tmp_path, **kwargs)


def test_file_without_state_dict(tmp_path):
    torch.save({'epoch': 1, 'weights': {}}, tmp_path / 'odd.pth')
    with pytest.raises(MismatchedCheckpointError, match=r'not a state dict\. Not tensors: epoch, weights'):
        create_from(tmp_path / 'odd.pth', tmp_path)


def test_missing_classifier(tmp_path):
    headless = {key: tensor for key, tensor in weights().items() if not key.startswith('fc.')}
    with pytest.raises(MismatchedCheckpointError, match=r'missing: fc\.weight, fc\.bias'):
        create_from(headless, tmp_path)
    assert create_from(headless, tmp_path, num_classes=3).num_classes == 3


def test_overlay_file_and_missing_counters_of_norms(tmp_path):
    assert has_weights(create_from(weights(), tmp_path), weights())
    old = {key: tensor for key, tensor in weights().items() if not key.endswith('num_batches_tracked')}
    assert has_weights(create_from(old, tmp_path), weights())


@pytest.mark.parametrize('name', ['skresnet50', 'sk_shufflenetv2_x1_0', SHUFFLE, MOBILE, 'skresnet50d.untrained'])
def test_architecture_without_weights(name):
    with pytest.raises(NoWeightsError, match=rf'of {name.partition(".")[0]}\.untrained: .* Use `pretrained=False`'):
        timm.create_model(name, pretrained=True)
    assert timm.create_model(name, pretrained=False, device='meta')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove'])
def test_damaged_bundled_file(tmp_path, monkeypatch, damage):
    folder = tmp_path / 'sknet_atto.digits'
    folder.mkdir()
    content = bytearray((BUNDLED / 'model.safetensors').read_bytes())
    content[-1000] ^= 1
    if damage != 'remove':
        (folder / 'model.safetensors').write_bytes(content if damage == 'flip' else content[:-4])
    monkeypatch.setattr('timm_sk.pretrained.resolve.bundled_folder', lambda name: tmp_path / name)
    with pytest.raises(CorruptCheckpointError, match=rf'{folder}/model\.safetensors.*Install timm_sk again'):
        timm.create_model('sknet_atto', pretrained=True)


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
