"""Settings: what a YAML file may hold, what overrides what, and what is refused."""

import dataclasses

import pytest
import yaml

from timm_sk.finetune.config import Config, checked, read_settings
from timm_sk.finetune.recipes import recipe_names


def write(path, content):
    path.write_bytes(content)
    return str(path)


def test_read_saved_settings(tmp_path):
    config = Config(decay_milestones=(150, 225), scale=(0.5, 1.0), aa='rand-m9', lr=1e-3, drop=None)
    settings = read_settings(write(tmp_path / 'run.yaml', yaml.safe_dump(config.as_dict()).encode()))
    assert Config(**settings) == config


@pytest.mark.parametrize('name', ['digits', 'digits.yaml'])
def test_read_recipe(name):
    assert read_settings(name)['model'] == 'sknet_atto.shapes'


def test_file_overrides_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'digits', b'epochs: 3\n')
    assert read_settings('digits') == dict(epochs=3)


def test_unknown_recipe():
    with pytest.raises(ValueError, match='neither a file nor a recipe') as raised:
        read_settings('no_such_recipe')
    assert str(raised.value).endswith(f'There are: {", ".join(recipe_names())}.')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'holds no settings: write one "name: value" per line'),
        (b'- lr\n', 'holds no settings'),
        (b'epochs\n', 'holds no settings'),
        (b'lr: [1', 'is not YAML'),
        (b'\xff\xfe\xfa', 'is not YAML'),
    ],
)
def test_invalid_yaml(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf'run\.yaml {message}') as raised:
        read_settings(write(tmp_path / 'run.yaml', content))
    assert '\n' not in str(raised.value)


def test_unknown_keys():
    with pytest.raises(
        ValueError, match=r'^run\.yaml: unknown setting weigth_decay\. Nearest: weight_decay, layer_decay\.$'
    ):
        checked({'weigth_decay': 0.1}, 'run.yaml')
    with pytest.raises(ValueError, match=r'^run\.yaml: unknown setting 12\.$'):
        checked({12: 1}, 'run.yaml')
    assert checked({'weight-decay': 0.1}, '') == dict(weight_decay=0.1)


@pytest.mark.parametrize(
    ('key', 'given', 'value'),
    [
        ('lr', '1e-3', 1e-3),  # as YAML 1.1 reads a number without a point
        ('lr', 1, 1.0),
        ('lr', None, None),
        ('epochs', '30', 30),
        ('epochs', 30.0, 30),
        ('decay_milestones', [150, '225'], (150, 225)),
        ('scale', ['8e-2', 1], (0.08, 1.0)),
        ('img_size', None, None),
        ('pretrained', False, False),
        ('licence', 'MIT', 'MIT'),
        ('tag', 7, '7'),
    ],
)
def test_convert_values(key, given, value):
    found = checked({key: given}, '')[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ('key', 'given'),
    [
        ('epochs', 1.5),
        ('epochs', True),
        ('epochs', None),
        ('epochs', float('inf')),
        ('epochs', 'many'),
        ('epochs', [1]),
        ('lr', 'fast'),
        ('lr', False),
        ('pretrained', 'yes please'),
        ('pretrained', 1),
        ('scale', 0.5),
        ('scale', [0.5, 'all']),
        ('decay_milestones', [30.5]),
        ('aa', False),
        ('model', None),
        ('model', ['a', 'b']),
    ],
)
def test_values_of_another_type(key, given):
    with pytest.raises(ValueError, match=rf'^run\.yaml: {key} must be of type \w+.*, got '):
        checked({key: given}, 'run.yaml')


@pytest.mark.parametrize(
    ('setting', 'value', 'rule'),
    [
        *((name, value, 'from 0 to 1') for name in ('drop', 'drop_path', 'drop_block') for value in (-0.1, 1.1)),
        *((name, value, 'from 0 to 1') for name in ('smoothing', 'hflip', 'vflip', 'reprob') for value in (-0.1, 1.1)),
        *((name, value, 'from 0 to 1') for name in ('mixup_prob', 'mixup_switch_prob') for value in (-0.1, 1.1)),
        *((name, 0, 'above 0') for name in ('lr', 'lr_base', 'lr_base_size', 'epochs', 'batch_size')),
        *((name, 0, 'above 0') for name in ('grad_accum_steps', 'recount', 'decay_rate', 'in_chans')),
        *((name, -1, 'at least 0') for name in ('weight_decay', 'workers', 'save_every', 'early_stopping')),
        *((name, -1, 'at least 0') for name in ('max_bad_images', 'synthetic', 'mixup', 'cutmix')),
        *((name, -1, 'at least 0') for name in ('warmup_epochs', 'cooldown_epochs', 'seed')),
        ('val_fraction', 0, 'above 0 and below 1'),
        ('val_fraction', 1, 'above 0 and below 1'),
        ('model_ema_decay', 0, 'above 0 and below 1'),
        ('model_ema_decay', 1, 'above 0 and below 1'),
        ('eval_metric', 'f1', 'top1, top5 or loss'),
        ('amp_dtype', 'float32', 'bfloat16 or float16'),
        ('lr_base_scale', 'log', 'linear, sqrt or empty'),
        ('clip_mode', 'agnorm', 'norm, value or agc'),
        ('remode', 'black', 'const, rand or pixel'),
        ('features_format', 'csv', 'safetensors or npy'),
        ('scale', (0.0, 1.0), 'two ascending numbers above 0'),
        ('scale', (0.9, 0.5), 'two ascending numbers above 0'),
        ('scale', (0.5,), 'two ascending numbers above 0'),
        ('ratio', (1.5, 0.5), 'two ascending numbers above 0'),
        ('ratio', (0.5, 1.0, 1.5), 'two ascending numbers above 0'),
    ],
)
def test_invalid_values(setting, value, rule):
    with pytest.raises(ValueError, match=rf'^{setting} must be {rule}, got '):
        Config(**{setting: value})


@pytest.mark.parametrize(
    'settings',
    [
        dict(drop=None, drop_path=0.0, smoothing=1.0),
        dict(weight_decay=0.0, workers=0, seed=0, warmup_epochs=0),
        dict(epochs=1, warmup_epochs=0),
        dict(epochs=1, warmup_epochs=0.5),
        dict(lr=None, lr_base=None),
        dict(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
        dict(in_chans=None),
    ],
)
def test_valid_values(settings):
    assert dataclasses.asdict(Config(**settings)).items() >= settings.items()


def test_help_texts():
    for item in dataclasses.fields(Config):
        assert item.metadata['help'].endswith(('.', '…')), item.name
        assert item.metadata['group'], item.name
