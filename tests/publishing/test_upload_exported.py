"""Publishing an exported folder on a loopback Hub: checked first, then released under its own version numbers."""

import json
import shutil
from functools import partial

import pytest
import timm
import torch
from huggingface_hub import HfApi
from random_weights import fill_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.cli import publish as cli_publish
from timm_sk.pretrained import save_safetensors
from timm_sk.publishing.package import package_checkpoint
from timm_sk.publishing.upload import Publisher

pytestmark = pytest.mark.deep

REPO = 'me/sknet_atto.pets'
FILES = ('model.safetensors', 'config.json', 'golden.safetensors', 'README.md')


def export(folder, seed=0, **options):
    shutil.rmtree(folder, ignore_errors=True)
    model = fill_model(timm.create_model('sknet_atto', num_classes=3), seed=seed)
    save_safetensors(model.state_dict(), folder.with_suffix('.safetensors'))
    facts = dict(arch='sknet_atto', tag='pets', out=folder, label_names=('cat', 'dog', 'eel'), licence='mit')
    return package_checkpoint(folder.with_suffix('.safetensors'), **{**facts, **options})


@pytest.fixture
def folder(tmp_path):
    return export(tmp_path / 'export')


@pytest.fixture
def publish(api):
    """Publish a folder with a client that has the owner's token."""

    def publish(exported, **options):
        return Publisher(org='me', api=api, **options).publish_folder(exported)

    return publish


def test_publish_exported_folder(hub, publish, folder):
    (folder / 'notes.txt').write_text('to myself')
    (folder / 'config.yaml').write_text('lr: 0.1\n')
    plans = []
    outcome = publish(folder, show=plans.append)
    assert (outcome.state, outcome.detail) == ('published', f'{REPO} at v1: 5 files sent, all read back')
    assert (plans[0].tag, plans[0].head, set(plans[0].changes.values())) == ('v1', None, {'added'})
    repo = hub.repos[REPO]
    assert [commit.title for commit in repo.commits.values()][1:] == ['sknet_atto.pets by timm_sk 0.1.0']
    assert repo.tags == {'v1': repo.head}
    files = hub.contents(REPO)
    assert set(files) == {*FILES, 'config.yaml'}
    assert files['model.safetensors'] == (folder / 'model.safetensors').read_bytes()
    assert hub.requests['GET', 'resolve'] == 5
    assert 'hf-hub:me/sknet_atto.pets' in files['README.md'].decode()
    assert 'ORG/' not in files['README.md'].decode()
    assert 'hf-hub:ORG/sknet_atto.pets' in (folder / 'README.md').read_text()


def test_release_numbers(hub, publish, folder):
    publish(folder)
    hub.requests.clear()
    outcome = publish(folder)
    assert (outcome.state, hub.writes()) == ('unchanged', {})
    assert outcome.detail == f'{REPO} is at v1: nothing to do'
    first = hub.repos[REPO].head
    export(folder, seed=1)
    plans = []
    assert publish(folder, dry_run=True, show=plans.append).detail.endswith('send, tag v2')
    assert plans[0].changes['model.safetensors'] == 'changed'
    assert publish(folder).state == 'published'
    repo = hub.repos[REPO]
    assert repo.tags == {'v1': first, 'v2': repo.head}
    assert publish(export(folder)).state == 'published'  # the first one again is a third release
    assert set(repo.tags) == {'v1', 'v2', 'v3'}


def test_other_tags_do_not_count(api, publish, folder):
    publish(folder)
    for tag in ('v7.1.0', 'v12', 'best'):
        api.create_tag(REPO, tag=tag)
    export(folder, seed=1)
    assert publish(folder).detail.startswith(f'{REPO} at v13:')


def with_other_licence_in_card(folder):
    card = (folder / 'README.md').read_text()
    (folder / 'README.md').write_text(card.replace('license: mit', 'license: cc0-1.0'))


def with_config(folder, **changes):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))


def with_cfg(folder, **changes):
    config = json.loads((folder / 'config.json').read_text())
    with_config(folder, pretrained_cfg={**config['pretrained_cfg'], **changes})


def with_licence(folder, licence):
    card = (folder / 'README.md').read_text()
    (folder / 'README.md').write_text(card.replace('license: mit', f'license: {json.dumps(licence)}'))
    with_cfg(folder, license=licence)


def with_link(folder, name):
    """A file that is not of the export, by way of a link with the name of one that is."""
    (folder.parent / 'token').write_bytes((folder / name).read_bytes() if (folder / name).exists() else b'hf_secret')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / 'token')


def with_text(folder, name, text):
    (folder / name).write_text(text)


def with_metadata(folder, **metadata):
    save_file(load_file(folder / 'model.safetensors'), folder / 'model.safetensors', metadata=metadata)


def with_other_weights(folder):
    tensors = load_file(folder / 'model.safetensors')
    tensors['fc.bias'] += torch.tensor([0, 5.0, 0])
    save_file(tensors, folder / 'model.safetensors')


def with_torn(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:1000])


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (partial(export, licence=None), r'states no licence: write the one of its weights as "license"'),
        (with_other_licence_in_card, 'states two licences'),
        (partial(with_config, pretrained_cfg={}), r'export is not of an export: KeyError'),
        (
            partial(with_config, pretrained_cfg=dict(tag='../else', license='mit')),
            r'Invalid name "sknet_atto\.\.\./else"',
        ),
        *(
            (partial(with_link, name=name), rf'export.{name} is a link or not a regular file')
            for name in ('recipe.json', 'model.safetensors')
        ),
        (lambda folder: (folder / 'recipe.json').mkdir(), 'is a link or not a regular file'),
        (partial(with_text, name='net.pt2', text=''), r'net\.pt2 holds code, which loading runs: remove it'),
        (partial(with_config, auto_map={'AutoModel': 'x.Y'}), r"config\.json has the field 'auto_map'"),
        (partial(with_config, model_args=[1]), 'model_args holds list instead of an object'),
        (partial(with_config, model_args=dict(features_only=True)), "model_args has the field 'features_only'"),
        (partial(with_config, num_classes='3'), r"config\.json has an invalid num_classes: '3'"),
        (partial(with_config, pretrained_cfg=[]), 'pretrained_cfg holds list instead of an object'),
        (partial(with_cfg, url='http://x'), "pretrained_cfg has the field 'url'"),
        (partial(with_cfg, custom_load=True), r'config\.json has custom_load'),
        (partial(with_cfg, mean=['0', 0, 0]), 'pretrained_cfg has an invalid mean: '),
        (partial(with_text, name='config.json', text='[' * 10**5), 'export is not of an export: '),
        (partial(with_text, name='recipe.json', text='{"format_version": 1, "token": "x"}'), "recipe.json .* 'token'"),
        (partial(with_text, name='config.yaml', text='data: /home/me\n'), 'config.yaml has data, a setting'),
        *(
            (partial(with_text, name='config.yaml', text=f'{key}: {path}\n'), f'path of your machine in {key}: write ')
            for key, path in (
                ('model', '/home/me/own'),
                ('model', 'local-dir:/home/me/own'),
                ('initial_checkpoint', '/home/me/own'),
            )
        ),
        (partial(with_text, name='config.yaml', text='token: x\n'), r'config\.yaml: unknown setting token'),
        (partial(with_text, name='config.yaml', text='- {'), r'README\.md or config\.yaml is not YAML'),
        (partial(with_metadata, format='pt', note='x'), "metadata of model.safetensors has the field 'note'"),
        (partial(with_licence, licence='unknown'), "states the licence 'unknown': expected an SPDX identifier"),
        (partial(with_config, architecture='skresnet18'), r'Keys missing: conv1\.weight'),
        (partial(export, tag='digits'), r'sknet_atto\.digits is a checkpoint of the table: export .* another tag'),
        (with_other_weights, 'loads as another model than it was written from'),
        (partial(with_torn, name='model.safetensors'), 'is not of an export: SafetensorError'),
        (partial(with_torn, name='golden.safetensors'), r'golden\.safetensors cannot be read'),
        *(
            (lambda folder, name=name: (folder / name).unlink(), f'has no {name}: expected a complete')
            for name in FILES
        ),
    ],
)
def test_invalid_folders(spoil, reason, hub, publish, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        publish(folder)
    assert '\n' not in str(caught.value)
    assert not hub.requests


def test_command(hub, folder, monkeypatch, tmp_path):
    monkeypatch.setattr('timm_sk.publishing.upload.HfApi', lambda: HfApi(endpoint=hub.endpoint, token='hf_owner'))

    def run(*arguments):
        done = CliRunner().invoke(cli_publish.app, ['publish', *arguments])
        return done.exit_code, ' '.join(done.output.split())

    code, output = run(str(folder), '--org', 'me', '--dry-run')
    assert (code, f'{REPO} is new; tag v1 is not set' in output, hub.repos) == (0, True, {})
    assert run(str(folder), '--org', 'me', '--private')[0] == 0
    assert hub.repos[REPO].private
    code, output = run(str(tmp_path), '--org', 'me')
    assert (code, output.startswith('timm-sk: '), 'has no model.safetensors' in output) == (1, True, True)
    monkeypatch.chdir(tmp_path)  # a name of the table means the table's, whatever lies there
    (tmp_path / 'sknet_atto.digits').mkdir()
    assert 'sknet_atto.digits' in CHECKPOINTS
    code, output = run('sknet_atto.digits', '--org', 'me', '--dry-run')
    assert (code, 'me/sknet_atto.digits is new; tag v0.1.0 is not set' in output) == (0, True)
