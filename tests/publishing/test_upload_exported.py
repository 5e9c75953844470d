"""An exported folder on the loopback hub: checked first, then released under numbers of its own."""

import json
import shutil

import pytest
import timm
import torch
from filling import fill_model
from hub_server import Fault
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.cli import publish as cli_publish
from timm_sk.errors import CorruptCheckpointError, ReleaseError, UnpublishableError
from timm_sk.pretrained import save_safetensors
from timm_sk.publishing.hub_folder import check_golden
from timm_sk.publishing.package import export_checkpoint
from timm_sk.publishing.upload import publish_folder

pytestmark = pytest.mark.deep

REPO = 'me/sknet_atto.pets'


def export(folder, seed=0, **options):
    shutil.rmtree(folder, ignore_errors=True)
    model = fill_model(timm.create_model('sknet_atto', num_classes=3), seed=seed)
    save_safetensors(model.state_dict(), folder.with_suffix('.safetensors'))
    facts = dict(arch='sknet_atto', tag='pets', out=folder, label_names=('cat', 'dog', 'eel'), licence='mit')
    return export_checkpoint(folder.with_suffix('.safetensors'), **{**facts, **options})


@pytest.fixture
def folder(tmp_path):
    return export(tmp_path / 'export')


def writes(hub):
    return {key: count for key, count in hub.requests.items() if key[0] in ('POST', 'PUT', 'DELETE')}


def contents(hub, repo=REPO):
    return {path: file.content for path, file in hub.repos[repo].files().items() if path != '.gitattributes'}


def test_it_is_sent_in_one_commit_and_read_back(hub, api, folder):
    (folder / 'notes.txt').write_text('to myself')
    (folder / 'config.yaml').write_text('lr: 0.1\n')
    plans = []
    outcome = publish_folder(folder, 'me', api=api, show=plans.append)
    assert (outcome.state, outcome.detail) == ('published', f'{REPO} at v1: 5 files sent, all read back')
    assert (plans[0].tag, plans[0].exists, set(plans[0].changes.values())) == ('v1', False, {'added'})
    repo = hub.repos[REPO]
    assert [commit.title for commit in repo.commits.values()][1:] == ['sknet_atto.pets by timm_sk 0.1.0']
    assert repo.tags == {'v1': repo.head}
    files = contents(hub)
    assert set(files) == {'README.md', 'config.json', 'config.yaml', 'golden.safetensors', 'model.safetensors'}
    assert files['model.safetensors'] == (folder / 'model.safetensors').read_bytes()
    assert hub.requests['GET', 'resolve'] == 5
    assert 'hf-hub:me/sknet_atto.pets' in files['README.md'].decode()
    assert 'ORG/' not in files['README.md'].decode()
    assert 'hf-hub:ORG/sknet_atto.pets' in (folder / 'README.md').read_text()


def test_timm_loads_it_from_there(hub, api, folder, tmp_path, monkeypatch):
    publish_folder(folder, 'me', api=api)
    for name in ('config.json', 'model.safetensors', 'golden.safetensors'):
        hf_hub_download(REPO, name, revision='v1', endpoint=hub.endpoint, local_dir=tmp_path / 'there')
    model = timm.create_model(f'local-dir:{tmp_path / "there"}', pretrained=True)
    assert check_golden(model, tmp_path / 'there' / 'golden.safetensors') == 0
    assert tuple(model.pretrained_cfg['label_names']) == ('cat', 'dog', 'eel')


def test_the_same_again_is_nothing_and_another_is_the_next_number(hub, api, folder):
    publish_folder(folder, 'me', api=api)
    hub.requests.clear()
    outcome = publish_folder(folder, 'me', api=api)
    assert (outcome.state, writes(hub)) == ('unchanged', {})
    assert outcome.detail == f'{REPO} is at v1: nothing to do'
    first = hub.repos[REPO].head
    export(folder, seed=1)
    plans = []
    assert publish_folder(folder, 'me', api=api, dry_run=True, show=plans.append).detail.endswith('send, tag v2')
    assert plans[0].changes['model.safetensors'] == 'changed'
    assert publish_folder(folder, 'me', api=api).state == 'published'
    repo = hub.repos[REPO]
    assert repo.tags == {'v1': first, 'v2': repo.head}
    assert publish_folder(export(folder), 'me', api=api).state == 'published'  # the first one again is a third release
    assert set(repo.tags) == {'v1', 'v2', 'v3'}


def test_tags_of_others_do_not_count(hub, api, folder):
    publish_folder(folder, 'me', api=api)
    for tag in ('v7.1.0', 'v12', 'best'):
        api.create_tag(REPO, tag=tag)
    export(folder, seed=1)
    assert publish_folder(folder, 'me', api=api).detail.startswith(f'{REPO} at v13:')


def test_interrupted_it_is_continued(hub, api, folder):
    hub.faults = [Fault(request='POST .*/tag/', status=500, times=9)]
    with pytest.raises(ReleaseError, match='Publishing again continues'):
        publish_folder(folder, 'me', api=api)
    assert (len(hub.repos[REPO].commits), hub.repos[REPO].tags) == (2, {})
    hub.faults.clear()
    assert publish_folder(folder, 'me', api=api).state == 'tagged'
    assert (len(hub.repos[REPO].commits), hub.repos[REPO].tags) == (2, {'v1': hub.repos[REPO].head})


def test_what_comes_back_different_is_not_tagged(hub, api, folder):
    hub.faults = [Fault(request=r'GET .*/resolve/.*/model\.safetensors', flip=-1)]
    with pytest.raises(ReleaseError, match=r'gives another model\.safetensors back than was sent: v1 was not set'):
        publish_folder(folder, 'me', api=api)
    assert hub.repos[REPO].tags == {}


def unlicensed(folder):
    export(folder, licence=None)


def licensed_otherwise(folder):
    card = (folder / 'README.md').read_text()
    (folder / 'README.md').write_text(card.replace('license: mit', 'license: cc0-1.0'))


def no_config(folder):
    (folder / 'config.json').write_text('{"architecture": "sknet_atto"}')


def a_path_for_a_name(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['tag'] = '../else'
    (folder / 'config.json').write_text(json.dumps(config))


def another_architecture(folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'architecture': 'skresnet18'}))


def a_name_of_the_table(folder):
    export(folder, tag='digits')


def other_weights(folder):
    tensors = load_file(folder / 'model.safetensors')
    tensors['fc.bias'] += torch.tensor([0, 5.0, 0])
    save_file(tensors, folder / 'model.safetensors')


def torn_weights(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (unlicensed, r'states no licence: write the one of its weights as "license"'),
        (licensed_otherwise, 'states two licences'),
        (no_config, r'config\.json or README\.md is none of an export'),
        (a_path_for_a_name, 'which is no architecture and tag'),
        (another_architecture, r'Keys missing: conv1\.weight'),
        (a_name_of_the_table, r'sknet_atto\.digits is a checkpoint of the table: export .* under another tag'),
        (other_weights, 'loads as another model than it was written from'),
        (torn_weights, 'cannot be loaded: SafetensorError'),
    ],
)
def test_refused_before_anything_is_asked(spoil, reason, hub, api, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        publish_folder(folder, 'me', api=api)
    assert '\n' not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'golden.safetensors', 'README.md'])
def test_refused_without_one_of_its_files(name, hub, api, folder):
    (folder / name).unlink()
    with pytest.raises(UnpublishableError, match=f'has no {name}: it is no exported folder'):
        publish_folder(folder, 'me', api=api)
    assert not hub.requests


def test_torn_goldens_are_refused(hub, api, folder):
    (folder / 'golden.safetensors').write_bytes(b'torn')
    with pytest.raises(CorruptCheckpointError, match=r'golden\.safetensors cannot be read'):
        publish_folder(folder, 'me', api=api)


def test_the_command(hub, folder, monkeypatch, tmp_path):
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
