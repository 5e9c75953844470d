"""Recipes: each states its source, and is the same run by `timm-sk finetune` and by timm's train.py."""

import dataclasses
from typing import NamedTuple

import pytest
import timm
import torch
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm_train_flags import fits, parse, read_flags

import timm_sk  # noqa: F401
from timm_sk.finetune.config import AUGMENTATION, MODEL, TRAINING, Config, read_settings
from timm_sk.finetune.recipes import find_recipe, recipe_names
from timm_sk.finetune.train_state import resolve_lr

UNNAMED = ('finetune', 'model')  # the user names it
# Settings whose None in timm's script means the same as here.
SAME_ANYWAY = {'num_classes', 'eval_metric'}
OF_ONE_SCHEDULE = {'decay_epochs': 'step', 'decay_milestones': 'multistep'}


class Source(NamedTuple):
    """The training of the source: processes, images per step, learning rate by epoch from 0, weight decay, Nesterov."""

    processes: int
    images: int
    rates: dict[int, float]
    weight_decay: float = 0.05
    nesterov: bool | None = None


SOURCES = dict(
    sknet50_imagenet=Source(8, 256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4, 99: 1e-4}, 1e-4, False),
    sk_shufflenetv2_imagenet=Source(8, 256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4}, 4e-5, False),
    sknet29_cifar=Source(1, 128, {0: 0.1, 148: 0.1, 149: 0.01, 223: 0.01, 224: 1e-3, 299: 1e-3}, 5e-4),
    skresnet18_imagenet=Source(8, 256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4}, 4e-5),
    skresnext50_ra=Source(2, 384, {0: 1e-5, 5: 0.18 * 0.998930, 120: 0.09, 239: 0.0}, 1e-4),
    resnest50_imagenet=Source(64, 8192, {0: 0.0, 5: 3.2 * 0.999154, 135: 1.6, 269: 0.0}, 1e-4, True),
    simclr_imagenet=Source(16, 1024, {0: 0.064, 15: 0.032, 29: 0.064 * 0.002739}, 1e-6),
    finetune=Source(1, 64, {0: 1e-5, 10: 5e-4}),
    digits=Source(1, 64, {0: 3e-5, 12: 1.5e-3}),
    cifar10=Source(1, 128, {0: 1e-3, 2: 0.2 * 0.993844, 20: 0.1, 39: 0.2 * 0.001541}, 5e-4, True),
)
OWN_SETTINGS = {'crop_padding'}  # which timm's script lacks


def raw(name):
    return yaml.safe_load(find_recipe(name).read_text())


every_recipe = pytest.mark.parametrize('name', recipe_names())


def test_recipe_names():
    assert recipe_names() == sorted(SOURCES)


@every_recipe
def test_comments(name):
    text = find_recipe(name).read_text()
    comments = ' '.join(line.removeprefix('#').strip() for line in text.splitlines() if line.startswith('#'))
    assert text.startswith('# ')
    assert 'Source: ' in comments
    assert 'https://' in comments or 'our own' in comments
    assert "our own; no paper's" in comments or 'Changed:' in comments
    processes, images = SOURCES[name][:2]
    assert f'{processes} process' in comments or (processes == 1 and 'one process' in comments)
    assert read_settings(name)['batch_size'] * processes == images


@every_recipe
def test_settings(name):
    settings = read_settings(name)
    config = Config(**settings)
    assert {key: config.as_dict()[key] for key in raw(name)} == raw(name)
    assert ('model' in settings) == (name != UNNAMED[0])
    assert timm.is_model(settings.get('model', 'skresnet34'))
    assert not settings['pretrained'] or '.' in settings.get('model', 'given.here')


@every_recipe
def test_keys_are_flags_of_timm(name):
    recipe, flags = raw(name), read_flags()
    assert recipe.keys() - flags.keys() <= OWN_SETTINGS
    recipe = {key: value for key, value in recipe.items() if key in flags}
    for key, value in recipe.items():
        assert fits(value, flags[key].kind), f'{key}: {value!r} is not of kind {flags[key].kind}'
    args = vars(parse(recipe, '--epochs', '1', '--scale', '0.25', '0.75'))
    assert {key: args[key] for key in recipe} == recipe | dict(epochs=1, scale=[0.25, 0.75])


@every_recipe
def test_different_defaults_are_set(name):
    recipe, flags = raw(name), read_flags()
    for item in dataclasses.fields(Config):
        if item.metadata['group'] not in (MODEL, TRAINING, AUGMENTATION) or item.name not in flags:
            continue
        default = [*item.default] if isinstance(item.default, tuple) else item.default
        is_same = default == flags[item.name].default or (not default and not flags[item.name].default)
        is_unused = recipe['sched'] != OF_ONE_SCHEDULE.get(item.name, recipe['sched'])
        is_set = item.name in recipe or (item.name == 'lr_base' and 'lr' in recipe)
        assert is_same or is_unused or is_set or item.name in SAME_ANYWAY or (name, item.name) == UNNAMED, item.name


@every_recipe
def test_optimizer_and_schedule_of_source(name):
    source, config, args = SOURCES[name], Config(**read_settings(name)), parse(raw(name))
    args.lr = resolve_lr(config, source.images)
    optimizer = create_optimizer_v2(torch.nn.Linear(2, 2), **optimizer_kwargs(args))
    if source.nesterov is not None:
        group = optimizer.param_groups[0]
        assert (group['nesterov'], group['momentum']) == (source.nesterov, 0.9)
    schedule = scheduler_kwargs(args, decreasing_metric=False)
    steps = 10
    scheduler = create_scheduler_v2(optimizer, **schedule, updates_per_epoch=steps)[0]
    found = {}
    for epoch in range(config.epochs):
        scheduler.step(epoch)
        scheduler.step_update(epoch * steps)
        found[epoch] = max(group['lr'] for group in optimizer.param_groups)
    expected = pytest.approx(source.rates, rel=2e-4, abs=args.lr * 1e-4)
    assert {epoch: found[epoch] for epoch in source.rates} == expected
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, config.weight_decay}
    assert config.weight_decay == source.weight_decay
