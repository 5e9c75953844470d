"""Folders for the Hub: weights, config, golden file and card."""

import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from random_weights import fill_model
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from timm_sk.checkpoints import CHECKPOINTS, Checkpoint
from timm_sk.cli import app
from timm_sk.errors import (
    CorruptCheckpointError,
    MismatchedCheckpointError,
    UnknownModelError,
    UnloadableModelError,
    UnreadableCheckpointError,
)
from timm_sk.finetune import Config
from timm_sk.pretrained import bundled_folder, save_safetensors
from timm_sk.publishing.hub_folder import check_golden, config_of, golden_inputs, read_recipe, write_golden, write_model
from timm_sk.publishing.licences import is_licence
from timm_sk.publishing.model_card import eval_results, render_card
from timm_sk.publishing.package import package_checkpoint
from timm_sk.publishing.release import card_of

BUNDLED = [name for name, row in CHECKPOINTS.items() if row.bundled]
NAMES = ('cat', 'dog', 'eel')


@pytest.fixture
def trained():
    """A model of three classes, as if fine-tuned."""
    return fill_model(timm.create_model('sknet_atto', num_classes=3)).eval()


def front_matter(card):
    return yaml.safe_load(card.split('---\n')[1])


def table_of(card):
    """The first cells of a card's tables by the cells before them."""
    return dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', card, re.MULTILINE))


@pytest.mark.parametrize('name', BUNDLED)
def test_config_of_bundled_checkpoints(name):
    config = config_of(timm.create_model(name), CHECKPOINTS[name])
    assert json.dumps(config, indent=2) + '\n' == (bundled_folder(name) / 'config.json').read_text()


def test_config_omits_unknown_fields():
    row = replace(CHECKPOINTS['sknet_atto.digits'], mean=None, crop_pct=None, licence=None, label_names=None)
    config = config_of(timm.create_model('sknet_atto'), row)
    assert not {'mean', 'crop_pct', 'license', 'label_names'} & set(config['pretrained_cfg'])
    assert config['pretrained_cfg']['std'] == (0.5, 0.5, 0.5)
    assert 'label_names' not in config


def test_weights_file(tmp_path, trained):
    row = replace(CHECKPOINTS['sknet_atto.digits'], num_classes=3, label_names=NAMES)
    write_model(tmp_path, trained, row, metadata=dict(origin='a test'))
    with safe_open(tmp_path / 'model.safetensors', 'pt') as file:
        assert file.metadata() == dict(format='pt', origin='a test')
    assert list(load_file(tmp_path / 'model.safetensors')) == list(trained.state_dict())
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in trained.state_dict().items())
    assert tuple(loaded.pretrained_cfg['label_names']) == NAMES


def test_check_golden(tmp_path, trained):
    path = tmp_path / 'golden.safetensors'
    write_golden(path, trained.train(), golden_inputs((3, 32, 32)), metadata={})
    assert trained.training
    golden = load_file(path)
    with torch.no_grad():
        assert torch.equal(golden['logits'], trained.eval()(golden['inputs']))
    assert (golden['inputs'].shape, golden['logits'].dtype) == ((2, 3, 32, 32), torch.float32)
    assert torch.equal(golden_inputs((3, 32, 32)), golden['inputs'])
    assert check_golden(trained, path) == 0
    with torch.no_grad():
        trained.fc.bias[1] += 0.25
    with pytest.raises(MismatchedCheckpointError, match=r'The logits differ from those in .* by 0\.25'):
        check_golden(trained, path)
    message = r'another model: it has logits \[2, 3\], the model gives \[2, 10\]'
    with pytest.raises(CorruptCheckpointError, match=message):
        check_golden(timm.create_model('sknet_atto'), path)
    save_safetensors(dict(inputs=torch.zeros(1)), path)
    with pytest.raises(CorruptCheckpointError, match=r"holds \{'inputs': \[1\]\} instead"):
        check_golden(trained, path)


@pytest.mark.parametrize('name', BUNDLED)
def test_recipe_in_bundled_card(name):
    card = (bundled_folder(name) / 'README.md').read_text()
    recipe = read_recipe(bundled_folder(name))
    settings = card.split('| setting | value |\n|---|---|\n')[1].split('\n\n')[0].splitlines()
    assert settings == [f'| {field} | {value} |' for field, value in recipe.items()]


@pytest.mark.parametrize('content', ['{"format_version": 2}', '{"lr": 0.1}', '[1]', '{'])
def test_unknown_recipe_format(tmp_path, content):
    (tmp_path / 'recipe.json').write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r'recipe\.json cannot be read: .*') as error:
        read_recipe(tmp_path)
    assert '\n' not in str(error.value)


def test_card_of_bundled_checkpoint():
    card = card_of(CHECKPOINTS['sknet_atto.digits'], repo_id='somebody/sknet_atto.digits')
    facts = table_of(card)
    expected = {
        'Parameters': '201,506',
        'FLOPs': '0.001793 G multiply-adds at 3x32x32',
        'File size': '837,896 bytes',
        'Learning rate': '0.003',
        'Epochs': '120',
        'Batch size': '64',
        'Weight decay': '0.05',
        'Recipe': '`python weights/train.py sknet_atto.digits`',
        'Mean': '0.5, 0.5, 0.5',
    }
    assert {key: facts[key] for key in expected} == expected
    assert 'opt adamw' in facts['Training techniques']
    assert '\n### Limits\n' in card  # the bundled card follows, a level deeper
    assert card.count('\n---\n') == 1
    assert 'hf-hub:somebody/sknet_atto.digits' in card


def test_card_of_other_checkpoint():
    row = CHECKPOINTS['skresnet18.ra_in1k']
    card = card_of(row, repo_id='somebody/skresnet18.ra_in1k')
    dataset = dict(name='ImageNet-1k', type='ILSVRC/imagenet-1k', split='validation')
    metrics = [
        dict(type='accuracy', value=73.02, name='Top-1 accuracy'),
        dict(type='accuracy', value=91.172, name='Top-5 accuracy'),
    ]
    result = dict(task=dict(type='image-classification'), dataset=dataset, metrics=metrics)
    assert front_matter(card) == {
        'license': 'apache-2.0',
        'library_name': 'timm',
        'pipeline_tag': 'image-classification',
        'tags': ['image-classification', 'timm', 'transformers', 'selective-kernel'],
        'datasets': ['ILSVRC/imagenet-1k'],
        'model-index': [dict(name='skresnet18.ra_in1k', results=[result])],
    }
    facts = table_of(card)
    assert facts['FLOPs'] == '1.814 G multiply-adds at 3x224x224'
    assert {facts[key] for key in ('Learning rate', 'Epochs', 'Batch size', 'Weight decay')} == {'not established'}
    assert 'sha256 begins with `4eec2804`' in card
    assert '`timm-sk weights convert FILE --to skresnet18.ra_in1k`' in card
    assert 'at `6c97652bb744d89177b68274d2fda3923a7d1f95`, without the classifier' in card
    assert 'Top-1 73.02 %, top-5 91.17 % on ImageNet-1k validation' in card


def test_card_without_known_fields():
    row = Checkpoint(name='sknet_atto.bare', family='sknet', input_size=(3, 32, 32), mean=None, crop_pct=None)
    card = render_card(row, repo_id='somebody/bare')
    facts = table_of(card)
    unknown = ('Licence', 'Origin', 'Training data', 'Training techniques', 'Recipe')
    assert {facts[key] for key in (*unknown, 'Mean', 'Centre crop', 'File size')} == {'not established'}
    assert not {'license', 'datasets', 'model-index', 'base_model'} & set(front_matter(card))


def test_cards_have_no_gaps():
    for row in CHECKPOINTS.values():
        if row.arch in ('sknet_atto', 'skresnet18', 'sknet29_16x32d', 'resnest14d', 'skresnet18_mindcv'):
            card = card_of(row, repo_id='somebody/it')
            assert front_matter(card)['license'] == row.licence
            assert 'None' not in card
            assert '$' not in card


def test_eval_results():
    (path, text), *others = eval_results(CHECKPOINTS['skresnet18.ra_in1k']).items()
    assert (path, others) == ('.eval_results/imagenet-1k.yaml', [])
    notes = "top-1 accuracy in percent on the validation split at 224x224; timm's results-imagenet.csv"
    dataset = dict(id='ILSVRC/imagenet-1k', task_id='default')
    assert yaml.safe_load(text) == [dict(dataset=dataset, value=73.02, notes=notes)]
    assert list(eval_results(CHECKPOINTS['sknet50_holocron.imagenette'])) == ['.eval_results/imagenette.yaml']
    assert eval_results(CHECKPOINTS['sknet_atto.digits']) == {}


def test_package_checkpoint_of_train_py(tmp_path, trained):
    options = Namespace(
        model='sknet_atto.shapes', pretrained=True, lr=0.02, epochs=7, batch_size=16, weight_decay=0.0, opt='sgd',
        mean=[0.4, 0.5, 0.6], std=None, crop_pct=0.9, img_size=48, smoothing=0.1, mixup=0.0,
    )  # fmt: skip
    untrained = timm.create_model('sknet_atto', num_classes=3)
    averaged = {f'module.{key}': tensor for key, tensor in trained.state_dict().items()}
    checkpoint = dict(
        epoch=7, arch='sknet_atto', state_dict=untrained.state_dict(), state_dict_ema=averaged, args=options
    )
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    folder = package_checkpoint(
        tmp_path / 'last.pth.tar', arch='sknet_atto', tag='pets', out=tmp_path / 'new' / 'pets', label_names=NAMES,
        licence='mit', origin='a test',
    )  # fmt: skip
    files = {'README.md', 'config.json', 'golden.safetensors', 'model.safetensors', 'recipe.json'}
    assert {path.name for path in folder.iterdir()} == files
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert check_golden(loaded, folder / 'golden.safetensors') == 0
    assert torch.equal(loaded.fc.weight, trained.fc.weight)
    cfg = loaded.pretrained_cfg
    assert (cfg['tag'], cfg['license'], tuple(cfg['label_names'])) == ('pets', 'mit', NAMES)
    assert (tuple(cfg['mean']), tuple(cfg['std']), cfg['crop_pct']) == ((0.4, 0.5, 0.6), (0.5, 0.5, 0.5), 0.9)
    assert tuple(cfg['input_size']) == (3, 48, 48)
    recipe = dict(lr=0.02, epochs=7, batch_size=16, weight_decay=0.0, opt='sgd', smoothing=0.1)
    assert read_recipe(folder) == recipe
    facts = table_of((folder / 'README.md').read_text())
    assert (facts['Learning rate'], facts['Licence'], facts['Weight decay']) == ('0.02', 'mit', '0.0')
    assert list(tmp_path.joinpath('new').iterdir()) == [folder]


def test_export_names_base_model(tmp_path):
    model = timm.create_model('skresnet18', num_classes=2, in_chans=1)
    options = Namespace(model='skresnet18.ra_in1k', pretrained=True)
    torch.save(dict(state_dict=model.state_dict(), args=options), tmp_path / 'last.pth')
    folder = package_checkpoint(tmp_path / 'last.pth', arch='skresnet18', tag='xray', out=tmp_path / 'xray')
    card = (folder / 'README.md').read_text()
    assert front_matter(card)['base_model'] == 'timm/skresnet18.ra_in1k'
    assert table_of(card)['Licence'] == 'not established'
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).conv1.weight.shape == (64, 1, 7, 7)


def test_export_command(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_safetensors(trained.state_dict(), tmp_path / 'mine.safetensors')
    (tmp_path / 'labels.txt').write_text('cat\ndog\neel|ray\n\n')
    arguments = ['weights', 'package', 'mine.safetensors', '--arch', 'sknet_atto', '--tag', 'pets']
    arguments += ['--label-names', 'labels.txt', '--origin', 'https://example.org/me']
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert 'hf upload ORG/sknet_atto.pets sknet_atto.pets' in done.output
    model = timm.create_model('local-dir:sknet_atto.pets', pretrained=True)
    assert check_golden(model, tmp_path / 'sknet_atto.pets' / 'golden.safetensors') == 0
    assert tuple(model.pretrained_cfg['label_names']) == ('cat', 'dog', 'eel|ray')
    assert r'| Classes | 3: cat, dog, eel\|ray |' in (tmp_path / 'sknet_atto.pets' / 'README.md').read_text()
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, 'is not empty' in again.output) == (1, True)


@pytest.mark.parametrize(
    ('changes', 'options', 'error', 'message'),
    [
        ({'extra': torch.zeros(1)}, {}, MismatchedCheckpointError, 'unexpected: extra'),
        ({'bn1.weight': None}, {}, MismatchedCheckpointError, r'missing: bn1\.weight'),
        ({'fc.weight': None}, {}, MismatchedCheckpointError, r'no tensor fc\.weight of 2 dimensions'),
        ({'conv1.0.weight': torch.ones(3)}, {}, MismatchedCheckpointError, r'no tensor conv1\.0\.weight of 4 dimens'),
        ({'conv1.0.weight': 3}, {}, UnreadableCheckpointError, r"'conv1\.0\.weight' \(a int\)"),
        ({}, dict(label_names=('a', 'b')), ValueError, '2 label names for 3 classes'),
        ({}, dict(arch='resnet18'), UnknownModelError, 'no architecture "resnet18"'),
        ({}, dict(arch='sknet51'), UnknownModelError, r'no architecture "sknet51"\. Nearest: sknet50, '),
        ({}, dict(base='sknet_atto.gone'), UnknownModelError, r'"sknet_atto\.gone" of sknet_atto: .*atto\.shapes'),
        ({}, dict(name='gone.pth'), FileNotFoundError, r'No such file: .*gone\.pth'),
        ({}, dict(name='torn.safetensors'), UnreadableCheckpointError, r'torn\.safetensors cannot be read as a'),
    ],
)
def test_export_errors(tmp_path, trained, changes, options, error, message):
    state_dict = {key: value for key, value in {**trained.state_dict(), **changes}.items() if value is not None}
    torch.save(state_dict, tmp_path / 'file.pth')
    (tmp_path / 'torn.safetensors').write_bytes(b'torn')
    arguments = {**dict(name='file.pth', arch='sknet_atto', tag='x', out=tmp_path / 'x'), **options}
    with pytest.raises(error, match=message):
        package_checkpoint(tmp_path / arguments.pop('name'), **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file.pth', 'torn.safetensors']


INVALID_OPTIONS = [
    dict(img_size=10**9), dict(img_size='224'), dict(img_size=0), dict(input_size=[3, 32]), dict(input_size=32),
    dict(input_size=[3, 10**6, 10**6]), dict(mean='grey'), dict(std=[0.5, None]), dict(crop_pct='1'),
    dict(interpolation=3),
]  # fmt: skip


@pytest.mark.parametrize('options', INVALID_OPTIONS)
def test_export_of_invalid_options(tmp_path, trained, options):
    content = dict(state_dict=trained.state_dict(), args=Namespace(model=torch.ones(2), pretrained=[{}], **options))
    torch.save(content, tmp_path / 'last.pth')
    with pytest.raises(UnloadableModelError, match=rf'last\.pth has an invalid option {next(iter(options))}: '):
        package_checkpoint(tmp_path / 'last.pth', arch='sknet_atto', tag='x', out=tmp_path / 'x')


def test_card_shows_texts_as_they_are(trained):
    hostile = '<script>x</script> [a](javascript:b) ![](http://c) `d` *e* &lt; |'
    names = (hostile, 'dog', 'eel')
    facts = dict(origin=hostile, dataset=hostile, evaluation=hostile, label_names=names, num_classes=3)
    row = replace(CHECKPOINTS['sknet_atto.digits'], **facts)
    settings = dict(opt=hostile, lr=hostile)
    card = render_card(row, repo_id='me/x', settings=settings, trained_on=hostile)
    shown = r'&lt;script&gt;x&lt;/script&gt; \[a\](javascript:b) !\[\](http://c) \`d\` \*e\* &amp;lt; \|'
    body = card.split('\n---\n', 1)[1]
    assert body.count(shown) == 8
    assert not re.search(r'<script|\]\(javascript(?<!\\\]\(javascript)', body.replace(shown, ''))


def test_licences():
    refused = (' ', '', 'none', 'NONE', 'unknown', 'other', 'UNLICENSED', 'proprietary - do not redistribute')
    refused += ('LicenseRef-mine', 'MIT OR Apache-2.0', 'mit\n', 'NOASSERTION')
    assert not [licence for licence in refused if is_licence(licence)]
    accepted = ('mit', 'MIT', 'apache-2.0', 'cc-by-nc-4.0', 'Unlicense', 'openrail', 'gpl-3.0', 'eupl-1.2')
    accepted += tuple(row.licence for row in CHECKPOINTS.values() if row.licence)
    assert all(map(is_licence, accepted))
    with pytest.raises(ValueError, match=r"licence must be an SPDX identifier, .*, got 'unknown'"):
        Config(licence='unknown')
    with pytest.raises(ValueError, match="Invalid licence ' ': expected an SPDX identifier"):
        package_checkpoint(Path('gone'), arch='sknet_atto', tag='x', licence=' ')


class Trap:
    """A pickle of it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_export_executes_nothing(tmp_path, trained):
    torch.save(dict(state_dict=trained.state_dict(), args=Trap(tmp_path / 'sprung')), tmp_path / 'evil.pth')
    with pytest.raises(UnreadableCheckpointError, match=r'evil\.pth .* names .*open.*Nothing of it was executed'):
        package_checkpoint(tmp_path / 'evil.pth', arch='sknet_atto', tag='x', out=tmp_path / 'x')
    assert not (tmp_path / 'sprung').exists()
