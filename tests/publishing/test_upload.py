"""Publishing on a loopback Hub through the real client: one commit, files read back, a tag, safe to repeat."""

import copy
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from hub_repos import File
from hub_server import Fault
from huggingface_hub import HfApi
from random_weights import fill_model
from safetensors.torch import load, save
from subprocesses import ROOT, run_python
from typer.testing import CliRunner

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.cli import publish as cli_publish
from timm_sk.errors import (
    CorruptCheckpointError,
    NoWeightsError,
    ReleaseError,
    UnknownModelError,
    UnobtainableCheckpointError,
    UnpublishableError,
)
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import Store, bundled_folder, save_safetensors, store_file
from timm_sk.publishing.hub_folder import GOLDEN, write_model
from timm_sk.publishing.release import build_folder, reason_not_to_publish
from timm_sk.publishing.upload import TAG, Publisher

NAME = 'sknet_atto.digits'
REPO = f'timm-sk/{NAME}'


@pytest.fixture
def converted(hub, monkeypatch):
    """A row whose weights are converted from a file on the loopback server."""
    buffer = io.BytesIO()
    torch.save(fill_model(timm.create_model('sknet_atto', num_classes=8)).eval().state_dict(), buffer)
    hub.files['net.pth'] = buffer.getvalue()
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    unpinned = Source(kind='hub', location='somebody/net')
    source = Source(kind='url', location=f'{hub.endpoint}/files/net.pth', format='pytorch', sha256_prefix=digest[:8])
    ours = CHECKPOINTS['sknet_atto.shapes']
    row = replace(
        ours, sources=(unpinned, source), licence='mit', origin='others', mean=None, dataset=None, recipe=None
    )
    monkeypatch.setitem(CHECKPOINTS, row.name, row)
    return row


def only(monkeypatch, *names):
    """Reduce the table to these rows."""
    monkeypatch.setattr('timm_sk.publishing.upload.CHECKPOINTS', {name: CHECKPOINTS[name] for name in names})


@pytest.fixture
def publish(api):
    """Publish with a client that has the owner's token."""

    def publish(name=NAME, **options):
        return Publisher(**{'org': 'timm-sk', 'api': api, **options}).publish(name)

    return publish


def test_publish(hub, publish):
    plans = []
    outcome = publish(show=plans.append)
    assert (outcome.state, plans[0].head, set(plans[0].changes.values())) == ('published', None, {'added'})
    repo = hub.repos[REPO]
    assert [commit.title for commit in repo.commits.values()] == ['initial commit', f'{NAME} by timm_sk 0.1.0']
    assert repo.tags == {'v0.1.0': repo.head}
    files = hub.contents(REPO)
    bundled = bundled_folder(NAME)
    assert set(files) == {path.relative_to(bundled).as_posix() for path in bundled.rglob('*') if path.is_file()}
    assert {path for path in files if files[path] != (bundled / path).read_bytes()} == {'README.md'}
    assert hub.requests['GET', 'resolve'] == len(files)  # each was read back


@pytest.mark.deep
def test_card_examples_give_same_logits(hub, publish, tmp_path):
    publish()
    card = hub.contents(REPO)['README.md'].decode()
    with_timm, with_torch_hub = card.split('```python\n')[1:3]
    with_torch_hub = with_torch_hub.split('```')[0].replace('path/to/timm_sk', str(ROOT)).replace('model =', 'other =')
    code = f"""{with_timm.split('```')[0]}{with_torch_hub}
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
tagged = timm.create_model('hf-hub:{REPO}@{TAG}', pretrained=True).eval()
golden = load_file(hf_hub_download('{REPO}', 'golden.safetensors'))
with torch.inference_mode():
    logits = model(golden['inputs'])
    print((logits - golden['logits']).abs().max().item() < 1e-5, type(transform).__name__, end=' ')
    print(torch.equal(logits, other.cpu()(golden['inputs'])), torch.equal(logits, tagged(golden['inputs'])), end=' ')
print(tagged.pretrained_cfg['label_names'][7])
"""
    done = run_python('-c', code, **hub.environment(tmp_path / 'home'), TORCH_HOME=str(tmp_path / 'torch'))
    assert done.stdout == 'True Compose True True 7\n', done.stderr


def test_send_changed_files_only(hub, publish, tmp_path):
    folder = tmp_path / 'old'
    folder.mkdir()
    build_folder(CHECKPOINTS[NAME], folder, repo_id=REPO)
    (folder / 'README.md').write_text('an old card')
    (folder / 'recipe.json').unlink()
    (folder / 'notes.txt').write_text('not ours')
    hub.add(REPO, folder)
    plans = []
    publish(show=plans.append)
    changed = {path: change for path, change in plans[0].changes.items() if change != 'equal'}
    assert changed == {'README.md': 'changed', 'recipe.json': 'added'}
    assert hub.requests['PUT', 'lfs_upload'] == 0
    assert hub.contents(REPO)['notes.txt'] == b'not ours'
    assert hub.contents(REPO)['README.md'].startswith(b'---\nlibrary_name: timm\n')


@pytest.mark.deep
@pytest.mark.parametrize(
    'fault',
    [
        dict(request='POST .*/commit/', status=500),
        dict(request='PUT /lfs/', status=500, times=99),
        dict(request='POST .*/preupload/', status=503, times=99),
        dict(request='POST .*/commit/', status=412),
    ],
)
def test_interrupted_before_commit(hub, publish, tmp_path, fault):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'README.md').write_text('an old card')
    head = hub.add(REPO, tmp_path / 'old')
    hub.faults = [Fault(**fault)]
    with pytest.raises(ReleaseError, match=f'{REPO}: .*Publishing again continues'):
        publish()
    assert hub.faults[0].hits >= 1
    assert (hub.repos[REPO].head, hub.repos[REPO].tags) == (head, {})
    hub.faults.clear()
    assert publish().state == 'published'
    assert len(hub.repos[REPO].commits) == 3  # the Hub's first, the old one, the release


@pytest.mark.deep
@pytest.mark.parametrize(('request_line', 'then'), [('PUT /lfs/', 'published'), ('POST .*/tag/', 'tagged')])
def test_killed_release_is_resumed(hub, publish, tmp_path, request_line, then):
    hub.faults = [Fault(request=request_line, delay=math.inf, times=99)]
    code = f"from timm_sk.publishing.upload import Publisher; Publisher(org='timm-sk').publish('{NAME}')"
    environment = {**os.environ, **hub.environment(tmp_path / 'home'), 'HF_TOKEN': 'hf_owner', 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen([sys.executable, '-c', code], env=environment, stderr=subprocess.DEVNULL)
    while not hub.faults[0].hits and process.poll() is None:
        hub.stopped.wait(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (len(hub.repos[REPO].commits), hub.repos[REPO].tags) == (1 if then == 'published' else 2, {})
    hub.faults.clear()
    assert publish().state == then
    assert (len(hub.repos[REPO].commits), hub.repos[REPO].tags) == (2, {TAG: hub.repos[REPO].head})


def test_failed_dry_run_does_not_advise_to_publish_again(hub, publish):
    hub.faults = [Fault(request='GET /api/models/', status=500, times=99)]
    with pytest.raises(ReleaseError, match='500') as raised:
        publish(dry_run=True)
    assert 'again' not in str(raised.value)


def test_interrupted_after_commit(hub, publish):
    hub.faults = [Fault(request='POST .*/commit/', cut=0, length=1000)]  # made, but the answer is lost
    with pytest.raises(ReleaseError):
        publish()
    assert hub.faults[0].hits == 1
    head = hub.repos[REPO].head
    assert (len(hub.repos[REPO].commits), hub.repos[REPO].tags) == (2, {})
    hub.faults = [Fault(request='POST .*/tag/', status=500, times=9)]
    with pytest.raises(ReleaseError, match='500'):
        publish()
    hub.faults.clear()
    hub.requests.clear()
    assert publish().state == 'tagged'
    assert hub.writes() == {('POST', 'tag'): 1}
    assert (hub.repos[REPO].head, hub.repos[REPO].tags) == (head, {TAG: head})


def test_no_tag_if_read_back_differs(hub, publish):
    hub.faults = [Fault(request=r'GET .*/resolve/.*/model\.safetensors', flip=-1)]
    with pytest.raises(ReleaseError, match=r'returns another model\.safetensors than was sent: v0\.1\.0 was not set'):
        publish()
    assert hub.repos[REPO].tags == {}
    assert publish().state == 'tagged'


def test_published_version_never_changes(hub, publish, monkeypatch):
    publish()
    monkeypatch.setitem(CHECKPOINTS, NAME, replace(CHECKPOINTS[NAME], top1=99.0))
    hub.requests.clear()
    with pytest.raises(UnpublishableError, match=rf"published {TAG} with other files \(README\.md\).*raise timm_sk's"):
        publish()
    assert hub.writes() == {}
    monkeypatch.setattr('timm_sk.publishing.upload.TAG', 'v0.2.0')
    assert publish().state == 'published'
    assert set(hub.repos[REPO].tags) == {'v0.1.0', 'v0.2.0'}
    assert hub.repos[REPO].tags['v0.2.0'] == hub.repos[REPO].head != hub.repos[REPO].tags['v0.1.0']


def test_concurrent_commit(hub, publish, tmp_path):
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'README.md').write_text('theirs')
    hub.add(REPO, tmp_path / 'theirs')

    def interfere(plan):
        (tmp_path / 'theirs' / 'README.md').write_text('theirs, newer')
        hub.add(REPO, tmp_path / 'theirs')

    with pytest.raises(ReleaseError, match='412'):
        publish(show=interfere)
    assert hub.contents(REPO) == {'README.md': b'theirs, newer'}


def test_publish_twice(hub, publish, tmp_path):
    """A tagged release is unchanged even if main has changed."""
    publish()
    hub.requests.clear()
    assert (publish().state, hub.writes(), len(hub.repos[REPO].commits)) == ('unchanged', {}, 2)
    (tmp_path / 'README.md').write_text('edited by hand')
    hub.add(REPO, tmp_path)
    hub.requests.clear()
    assert (publish().state, hub.writes()) == ('unchanged', {})


def test_private_repositories_and_tokens(hub, publish):
    for token, error in (('hf_wrong', '401'), (False, '401')):
        with pytest.raises(ReleaseError, match=error):
            publish(private=True, api=HfApi(endpoint=hub.endpoint, token=token))
    assert hub.repos == {}
    assert publish(private=True).state == 'published'
    assert hub.repos[REPO].private
    for token in ('hf_wrong', False):
        with pytest.raises(ReleaseError, match='401'):
            publish(api=HfApi(endpoint=hub.endpoint, token=token))
    assert publish(private=True).state == 'unchanged'
    hub.repos[REPO].private = False
    with pytest.raises(UnpublishableError, match='is public already'):
        publish(private=True)


def test_publish_converted_weights(hub, publish, converted):
    assert publish(converted.name).state == 'published'
    files = hub.contents(f'timm-sk/{converted.name}')
    assert set(files) == {'README.md', 'config.json', 'golden.safetensors', 'model.safetensors'}
    config = json.loads(files['config.json'])
    assert (config['architecture'], config['label_names']) == ('sknet_atto', list(converted.label_names))
    assert 'mean' not in config['pretrained_cfg']
    assert '| Mean | not established |' in files['README.md'].decode()
    digest = hashlib.sha256(hub.files['net.pth']).hexdigest()
    assert f'sha256 begins with `{digest[:8]}`' in files['README.md'].decode()


def test_golden_of_another_machine_is_kept(hub, publish, converted):
    publish(converted.name)
    repo = hub.repos[f'timm-sk/{converted.name}']
    golden = load(repo.files()[GOLDEN].content)
    repo.files()[GOLDEN] = File(save(dict(golden, logits=golden['logits'] * (1 + 1e-6))), lfs=True)
    assert publish(converted.name).state == 'unchanged'
    repo.files()[GOLDEN] = File(save(dict(golden, logits=golden['logits'] * 1.01)), lfs=True)
    with pytest.raises(UnpublishableError, match=r'other files \(golden\.safetensors\)'):
        publish(converted.name)


def test_unpinned_weights_are_not_published(hub, publish, converted, tmp_path):
    """The store has weights of a user's file; the published file is used instead."""
    save_safetensors(timm.create_model('sknet_atto', num_classes=8).state_dict(), tmp_path / 'mine.safetensors')
    store_file(tmp_path / 'mine.safetensors', replace(converted, sources=()), shapes_of(converted))
    assert Store().origin(converted.name).kind == 'file'
    publish(converted.name)
    files = hub.contents(f'timm-sk/{converted.name}')
    published = load(files['model.safetensors'])
    expected = fill_model(timm.create_model('sknet_atto', num_classes=8)).state_dict()
    assert all(torch.equal(tensor, published[key]) for key, tensor in expected.items())
    sha256 = hashlib.sha256(hub.files['net.pth']).hexdigest()
    assert f'net.pth>, whose sha256 is `{sha256}`' in files['README.md'].decode()
    hub.files.clear()
    shutil.rmtree(Store().root)
    with pytest.raises(UnobtainableCheckpointError):
        publish(converted.name)


@pytest.mark.parametrize('org', ['a/b', '', '../x'])
def test_invalid_organisations(org):
    result = CliRunner().invoke(cli_publish.app, ['publish', NAME, '--org', org])
    assert (result.exit_code, result.output) == (1, f'timm-sk: Invalid organisation or user "{org}".\n')


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('sknet50.implus_in1k', 'states no licence: convert it for your own use'),
        ('skresnet18_mindcv.mindcv_in1k', 'The table has no hash of the weights'),
        ('resnest50d.ade_deeplab', 'is a backbone without a classifier'),
        ('lsknet_t.in1k', r'The licence of lsknet_t\.in1k, cc-by-nc-4\.0, allows no commercial use'),
    ],
)
def test_unpublishable_rows(hub, publish, name, reason):
    with pytest.raises(UnpublishableError, match=reason):
        publish(name)
    assert not hub.requests


def test_unpublishable_origins_and_names(publish):
    origins = {row.origin for row in CHECKPOINTS.values() if row.sources and reason_not_to_publish(row)}
    assert origins == {
        'the authors of SimCLRv2, with TensorFlow',
        *('the authors of SKNet, with Caffe', 'the authors of LSKNet', 'the authors of ResNeSt, with Detectron2'),
        *('PytorchInsight', 'MindCV', 'PaddleClas', 'syt2', 'PyTorch-Encoding'),
        'OpenMMLab, converted from Detectron2',
    }
    row = replace(CHECKPOINTS[NAME], origin=None)
    assert reason_not_to_publish(row) == f'The table does not say who made {NAME}: establish its origin first.'
    with pytest.raises(UnknownModelError, match='Unknown checkpoint "skresnet35"'):
        publish('skresnet35')
    with pytest.raises(NoWeightsError, match=r'skresnet50\.untrained is an untrained model'):
        publish('skresnet50.untrained')


def test_damaged_bundled_file(hub, publish, monkeypatch, tmp_path):
    row = CHECKPOINTS[NAME]
    monkeypatch.setitem(CHECKPOINTS, NAME, replace(row, sources=(replace(row.bundled, sha256='0' * 64),)))
    with pytest.raises(CorruptCheckpointError, match='is damaged'):
        publish()
    assert not hub.requests


def test_weights_that_load_as_another_model(tmp_path, monkeypatch, converted):
    def write_another(folder, model, row, *, metadata):
        write_model(folder, fill_model(copy.deepcopy(model), seed=5), row, metadata=metadata)

    monkeypatch.setattr('timm_sk.publishing.hub_folder.write_model', write_another)
    with pytest.raises(UnpublishableError, match='loads as another model'):
        build_folder(converted, tmp_path, repo_id=REPO)


def test_publish_all(hub, api, monkeypatch):
    gone = Source(kind='url', location=f'{hub.endpoint}/files/gone.pth', sha256='0' * 64)
    failing = replace(CHECKPOINTS['skresnet18.ra_in1k'], sources=(gone,))
    monkeypatch.setitem(CHECKPOINTS, failing.name, failing)
    only(monkeypatch, NAME, 'sknet_atto.shapes', 'sknet50.implus_in1k', failing.name)
    outcomes = {outcome.name: outcome for outcome in Publisher(org='timm-sk', api=api).publish_all()}
    assert outcomes[failing.name].detail.startswith(
        'UnobtainableCheckpointError: Could not download the weights of skresnet18.ra_in1k'
    )
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {
        'skresnet18.ra_in1k': 'failed',
        'sknet50.implus_in1k': 'refused',
        NAME: 'published',
        'sknet_atto.shapes': 'published',
    }
    assert set(hub.repos) == {REPO, 'timm-sk/sknet_atto.shapes'}


def test_commands(hub, monkeypatch):
    only(monkeypatch, NAME, 'sknet50.implus_in1k')
    monkeypatch.setattr('timm_sk.publishing.upload.HfApi', lambda: HfApi(endpoint=hub.endpoint, token='hf_owner'))

    def run(*arguments):
        done = CliRunner().invoke(cli_publish.app, arguments)
        return done.exit_code, ' '.join(done.output.split())

    code, output = run('publish', NAME, '--org', 'timm-sk', '--dry-run')
    assert (hub.repos, hub.writes()) == ({}, {})
    assert (code, f'{REPO} is new; tag v0.1.0 is not set' in output, 'model.safetensors added' in output) == (0, 1, 1)
    code, output = run('publish', '--all', '--org', 'timm-sk')
    assert (code, 'published' in output, 'refused' in output) == (0, True, True)
    code, output = run('publish', NAME, '--org', 'timm-sk')
    assert (code, 'nothing to do' in output) == (0, True)
    code, output = run('publish', 'sknet50.implus_in1k', '--org', 'timm-sk')
    assert (code, 'timm-sk: The publisher of sknet50.implus_in1k states no licence' in output) == (1, True)
    assert run('publish', '--org', 'timm-sk') == (1, 'timm-sk: Name one checkpoint, or give --all.')
    hub.faults = [Fault(request='GET', status=500, times=99)]
    code, output = run('publish', '--all', '--org', 'timm-sk')
    assert (code, f'timm-sk: {NAME}: ReleaseError: {REPO}' in output) == (1, True)
    code, output = run('card', NAME, '--org', 'timm-sk')
    assert (code, output) == (0, ' '.join(hub.contents(REPO)['README.md'].decode().split()))
