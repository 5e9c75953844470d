"""Recipes: each states its source, and is the same run by `timm-sk finetune` and by timm's own train.py."""

import dataclasses

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

OURS_ALONE: set[str] = set()  # keys that timm's script would warn about and ignore
# None in timm's script means the same as here: as many as the data has, and top1.
SAME_ANYWAY = {'num_classes', 'eval_metric'}
SCHEDULES_OWN = {'decay_epochs': 'step', 'decay_milestones': 'multistep'}
# Images in a step that the source had, and the learning rate by epoch, counted from 0.
SOURCES = {
    'sknet50_imagenet': (256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4, 99: 1e-4}),
    'sk_shufflenetv2_imagenet': (256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4}),
    'sknet29_cifar': (128, {0: 0.1, 148: 0.1, 149: 0.01, 223: 0.01, 224: 1e-3, 299: 1e-3}),
    'skresnet18_imagenet': (256, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4}),
    'skresnext50_ra': (384, {0: 1e-5, 5: 0.18 * 0.998930, 120: 0.09, 239: 0.0}),
    'resnest50_imagenet': (8192, {0: 0.0, 5: 3.2 * 0.999154, 135: 1.6, 269: 0.0}),
    'finetune': (64, {0: 1e-5, 10: 5e-4}),
    'digits': (64, {0: 3e-5, 12: 1.5e-3}),
}
WEIGHT_DECAYS = dict(
    sknet50_imagenet=1e-4,
    sk_shufflenetv2_imagenet=4e-5,
    sknet29_cifar=5e-4,
    skresnet18_imagenet=4e-5,
    skresnext50_ra=1e-4,
    resnest50_imagenet=1e-4,
)


def raw(name):
    return yaml.safe_load(find_recipe(name).read_text())


def comments(name):
    lines = find_recipe(name).read_text().splitlines()
    return '\n'.join(line for line in lines if line.startswith('#'))


every_recipe = pytest.mark.parametrize('name', recipe_names())


def test_these_recipes_ship():
    assert recipe_names() == sorted(SOURCES)


@every_recipe
def test_it_names_its_source_and_what_is_not_its(name):
    text = comments(name)
    assert find_recipe(name).read_text().startswith('# ')
    assert '# Source: ' in text
    assert 'https://' in text or 'our own' in text
    assert "our own; no paper's" in text or '# Changed:' in text
    assert 'process' in text


@every_recipe
def test_it_loads(name):
    settings = read_settings(name)
    config = Config(**settings)
    assert {key: config.as_dict()[key] for key in raw(name)} == raw(name)


@every_recipe
def test_its_model_is_registered_and_its_weights_exist_where_it_wants_them(name):
    settings = read_settings(name)
    assert timm.is_model(settings['model'])
    assert not settings['pretrained'] or '.' in settings['model']


@every_recipe
def test_its_keys_are_flags_of_timms_script_with_their_kinds(name):
    flags = read_flags()
    for key, value in raw(name).items():
        assert key in flags or key in OURS_ALONE, key
        assert key in OURS_ALONE or fits(value, flags[key].kind), f'{key}: {value!r} is no {flags[key].kind}'


@every_recipe
def test_its_keys_survive_in_timms_script_and_yield_to_arguments(name):
    recipe = raw(name)
    args = vars(parse(recipe, '--epochs', '1', '--scale', '0.25', '0.75'))
    assert args['epochs'] == 1
    assert args['scale'] == [0.25, 0.75]
    assert {key: args[key] for key in recipe.keys() - {'epochs', 'scale'}} == {
        key: value for key, value in recipe.items() if key not in ('epochs', 'scale')
    }


@every_recipe
def test_it_spells_out_what_the_two_have_other_defaults_for(name):
    recipe, flags = raw(name), read_flags()
    for item in dataclasses.fields(Config):
        if item.metadata['group'] not in (MODEL, TRAINING, AUGMENTATION) or item.name not in flags:
            continue
        default = [*item.default] if isinstance(item.default, tuple) else item.default
        same = default == flags[item.name].default or (not default and not flags[item.name].default)
        unused = recipe['sched'] != SCHEDULES_OWN.get(item.name, recipe['sched'])
        given = item.name in recipe or (item.name == 'lr_base' and 'lr' in recipe)
        assert same or unused or given or item.name in SAME_ANYWAY, item.name


@pytest.mark.parametrize('name', SOURCES)
def test_timm_makes_the_sources_schedule_of_it(name):
    total, expected = SOURCES[name]
    config = Config(**read_settings(name))
    args = parse(raw(name))
    args.lr = resolve_lr(config, total)
    optimizer = create_optimizer_v2(torch.nn.Linear(2, 2), **optimizer_kwargs(args))
    steps = 10
    scheduler = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args, decreasing_metric=False), updates_per_epoch=steps
    )[0]
    found = {}
    for epoch in range(config.epochs):
        scheduler.step(epoch)
        scheduler.step_update(epoch * steps)
        found[epoch] = max(group['lr'] for group in optimizer.param_groups)
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected, rel=2e-4, abs=args.lr * 1e-4)
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, config.weight_decay}
    assert config.weight_decay == WEIGHT_DECAYS.get(name, 0.05)


@pytest.mark.parametrize(
    ('name', 'nesterov'),
    [('sknet50_imagenet', False), ('sk_shufflenetv2_imagenet', False), ('resnest50_imagenet', True)],
)
def test_momentum_is_the_sources_kind(name, nesterov):
    args = parse(raw(name), '--lr', '0.1')
    group = create_optimizer_v2(torch.nn.Linear(2, 2), **optimizer_kwargs(args)).param_groups[0]
    assert (group['nesterov'], group['momentum']) == (nesterov, 0.9)


@pytest.mark.parametrize(
    ('name', 'processes'),
    [
        ('sknet50_imagenet', 8),
        ('sk_shufflenetv2_imagenet', 8),
        ('sknet29_cifar', 1),
        ('skresnet18_imagenet', 8),
        ('skresnext50_ra', 2),
        ('resnest50_imagenet', 64),
        ('finetune', 1),
        ('digits', 1),
    ],
)
def test_it_is_for_so_many_processes(name, processes):
    assert read_settings(name)['batch_size'] * processes == SOURCES[name][0]
    text = ' '.join(comments(name).replace('#', '').split())
    assert f'{processes} process' in text or (processes == 1 and 'one process' in text)
