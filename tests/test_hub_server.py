"""The loopback hub answers the huggingface_hub client as the Hub does, and injects faults."""

import hashlib
import os
import time

import pytest
import timm
import torch
from hub_server import Fault, Hub
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from random_weights import fill_model
from safetensors.torch import save_file
from subprocesses import run_python

pytestmark = pytest.mark.deep

REPO = 'timm-sk/sknet_atto'
WEIGHTS = bytes(range(256)) * 48 * 1024  # 12 MB
SMALL = bytes(range(256)) * 400
CONFIG = b'{"architecture": "sknet_atto"}\n'
README = b'---\nlicense: apache-2.0\n---\n'


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the client would have slept between its attempts."""
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    return waits


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """A function of a token, or False for none, that makes a client; all use one cold cache."""
    for name, value in hub.client_settings(tmp_path / 'cache').items():
        monkeypatch.setattr(constants, name, value)
    return lambda token='hf_owner': HfApi(endpoint=hub.endpoint, token=token)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'folder'
    (folder / 'examples').mkdir(parents=True)
    contents = {'model.safetensors': SMALL, 'config.json': CONFIG, 'README.md': README, 'examples/note.txt': b'seven\n'}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def published(hub, folder):
    """The folder as a repository; the fixture is its commit."""
    return hub.add(REPO, folder)


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def git_blob(content):
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def test_publish_and_pull(hub, client, folder, tmp_path):
    api = client()
    (folder / 'model.safetensors').write_bytes(WEIGHTS)
    (folder / 'golden.data').write_bytes(WEIGHTS[::-1])  # an LFS file for its size alone
    assert not api.repo_exists(REPO)
    assert api.create_repo(REPO, private=True).repo_id == REPO
    assert api.create_repo(REPO, exist_ok=True) == f'{hub.endpoint}/{REPO}'
    with pytest.raises(HfHubHTTPError, match='already created'):
        api.create_repo(REPO)
    first = api.repo_info(REPO).sha
    assert api.repo_info(REPO).private
    assert api.list_repo_files(REPO) == ['.gitattributes']

    commit = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message='Publish').oid
    api.create_tag(REPO, tag='v1.0')
    assert (hub.requests['PUT', 'lfs_upload'], hub.requests['POST', 'lfs_verify'], len(hub.objects)) == (2, 2, 2)
    assert {(b.name, b.target_commit) for b in api.list_repo_refs(REPO).branches} == {('main', commit)}
    assert {(t.name, t.target_commit) for t in api.list_repo_refs(REPO).tags} == {('v1.0', commit)}
    with pytest.raises(HfHubHTTPError, match='409'):
        api.create_tag(REPO, tag='v1.0')
    api.create_tag(REPO, tag='v1.0', exist_ok=True)

    api.upload_file(repo_id=REPO, path_in_repo='config.json', path_or_fileobj=b'{}')
    files = {f.path: f for f in api.list_repo_tree(REPO, recursive=True, revision='v1.0')}
    assert files['model.safetensors'].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (files['model.safetensors'].size, files['golden.data'].lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    assert (files['config.json'].lfs, files['config.json'].blob_id) == (None, git_blob(CONFIG))
    top = {type(f).__name__: f.path for f in api.list_repo_tree(REPO) if f.path.startswith('examples')}
    assert top == {'RepoFolder': 'examples'}
    assert [f.path for f in api.list_repo_tree(REPO, 'examples')] == ['examples/note.txt']

    for revision, config in (('v1.0', CONFIG), (commit, CONFIG), ('main', b'{}'), (None, b'{}')):
        assert read(api.hf_hub_download(REPO, 'config.json', revision=revision)) == config
    assert not api.file_exists(REPO, 'config.json', revision=first)
    pulled = api.snapshot_download(REPO, revision='v1.0', cache_dir=tmp_path / 'pulled')
    for path in ('model.safetensors', 'golden.data', 'README.md', 'examples/note.txt'):
        assert read(f'{pulled}/{path}') == (folder / path).read_bytes()
    assert os.path.basename(os.path.realpath(f'{pulled}/model.safetensors')) == hashlib.sha256(WEIGHTS).hexdigest()


def test_atomic_commit(hub, client, published):
    api, before = client(), hub.repos[REPO].head
    operations = [CommitOperationAdd('new.txt', b'new'), CommitOperationAdd('more.txt', b'more')]
    with pytest.raises(HfHubHTTPError, match='412'):
        api.create_commit(REPO, operations, commit_message='change', parent_commit='0' * 40)
    assert api.repo_info(REPO).sha == before
    after = api.create_commit(REPO, operations, commit_message='change', parent_commit=before).oid
    assert set(api.list_repo_files(REPO)) - set(api.list_repo_files(REPO, revision=before)) == {'new.txt', 'more.txt'}
    assert (api.repo_info(REPO).sha, api.repo_info(REPO, revision=before).sha) == (after, before)


def test_missing_files_and_revisions(hub, client, published):
    api = client()
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, 'adapter_config.json')
    missing = os.path.join(constants.HF_HUB_CACHE, 'models--timm-sk--sknet_atto', '.no_exist', published)
    assert os.listdir(missing) == ['adapter_config.json']  # as transformers expects after a first look
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, 'nowhere'))
    for revision in ('v2.0', '0' * 40, published[:12]):
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download(REPO, 'config.json', revision=revision)
        with pytest.raises(RevisionNotFoundError):
            api.snapshot_download(REPO, revision=revision)
    for api, status in ((client(), 404), (client(False), 401)):
        with pytest.raises(RepositoryNotFoundError) as raised:
            api.hf_hub_download('timm-sk/other', 'config.json')
        assert raised.value.response.status_code == status
        assert not api.repo_exists('timm-sk/other')


def test_permissions(hub, client, folder):
    hub.add(REPO, folder)
    hub.add('timm-sk/private', folder, private=True)
    owner, nobody, wrong = client(), client(False), client('hf_wrong')
    assert owner.repo_info('timm-sk/private').private
    assert read(owner.hf_hub_download('timm-sk/private', 'config.json')) == CONFIG
    assert read(nobody.hf_hub_download(REPO, 'README.md')) == README
    for call in (nobody.model_info, nobody.list_repo_files, nobody.list_repo_refs):
        with pytest.raises(RepositoryNotFoundError, match='401'):
            call('timm-sk/private')
    with pytest.raises(RepositoryNotFoundError, match='401'):
        nobody.hf_hub_download('timm-sk/private', 'README.md')
    for name in (REPO, 'timm-sk/private'):
        for call in (wrong.model_info, wrong.list_repo_files, wrong.create_repo):
            with pytest.raises(HfHubHTTPError, match='Invalid credentials'):
                call(name)
        with pytest.raises(HfHubHTTPError, match='Invalid credentials'):
            wrong.hf_hub_download(name, 'model.safetensors')
    before = hub.repos[REPO].head
    for api in (nobody, wrong):
        for write in (
            lambda: api.create_repo('timm-sk/new'),  # noqa: B023
            lambda: api.create_tag(REPO, tag='v1'),  # noqa: B023
            lambda: api.upload_file(repo_id=REPO, path_in_repo='a', path_or_fileobj=b'a'),  # noqa: B023
        ):
            with pytest.raises(HfHubHTTPError, match='401'):
                write()
    assert (hub.repos[REPO].head, hub.repos[REPO].tags, list(hub.repos)) == (before, {}, [REPO, 'timm-sk/private'])


def test_resumed_download(hub, client, published, waits, monkeypatch):
    """The last answer is cut where the rest of the file ends: were it not that rest, the file would lack its end."""
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)
    cuts = (70_000, 0, len(SMALL) - 70_000)
    hub.faults = [Fault(request=r'GET .*model\.safetensors', cut=cut) for cut in cuts]
    assert read(client().hf_hub_download(REPO, 'model.safetensors')) == SMALL
    assert (hub.requests['GET', 'resolve'], hub.requests['HEAD', 'resolve'], waits) == (3, 1, [1, 1])
    assert [fault.hits for fault in hub.faults] == [1, 1, 1]


@pytest.mark.parametrize(
    ('fault', 'seconds', 'asked'),
    [
        (dict(request='GET', status=429, headers={'Retry-After': '7'}), [8], 2),
        (dict(request='HEAD', status=500, times=2), [1], 1),
        (dict(request='HEAD', status=429, times=2, headers={'Retry-After': '3'}), [4], 1),
        (dict(request='GET', length=len(SMALL) + 10), [1], 2),
    ],
)
def test_client_retries(hub, client, published, waits, fault, seconds, asked):
    hub.faults = [Fault(**fault)]
    assert read(client().hf_hub_download(REPO, 'model.safetensors')) == SMALL
    assert (waits, hub.requests['GET', 'resolve']) == (seconds, asked)
    assert hub.faults[0].hits == hub.faults[0].times


def test_load_in_timm(hub, client, tmp_path):
    torch.manual_seed(3)
    model = fill_model(timm.create_model('resnet10t', num_classes=4)).eval()
    timm.models.save_for_hf(model, str(tmp_path / 'net'), safe_serialization=True)
    client().create_repo('somebody/net', private=True)
    client().upload_folder(repo_id='somebody/net', folder_path=tmp_path / 'net')
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        save_file(dict(inputs=inputs, logits=model(inputs)), tmp_path / 'expected.safetensors')
    code = """
import os, sys, timm, torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file
torch.set_num_threads(1)  # as here: sums are cut otherwise
def difference():
    with torch.no_grad():
        model, expected = timm.create_model('hf-hub:somebody/net', pretrained=True).eval(), load_file(sys.argv[1])
        return (model(expected['inputs']) - expected['logits']).abs().max().item()
try:
    difference()
except RepositoryNotFoundError as error:
    print(error.response.status_code, end=' ')
os.environ['HF_TOKEN'] = 'hf_owner'
print(difference(), end=' ')
constants.HF_HUB_OFFLINE = True
print(difference(), end=' ')
"""
    arguments = ('-c', code, str(tmp_path / 'expected.safetensors'))
    done = run_python(*arguments, **hub.environment(tmp_path / 'home'))
    assert done.stdout == '401 0.0 0.0 ', done.stderr
    assert hub.requests['GET', 'resolve'] == 2  # config.json and model.safetensors, once
