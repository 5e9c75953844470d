"""The loopback hub refuses what the Hub refuses; what else it answers is seen by the tests of downloads and uploads."""

import os

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

pytestmark = pytest.mark.deep

REPO = 'timm-sk/sknet_atto'


@pytest.fixture
def published(hub, tmp_path):
    """A repository of one file; the fixture is its commit."""
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'config.json').write_text('{}')
    return hub.add(REPO, tmp_path / 'folder')


def test_missing_files_and_revisions(hub, api, published):
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, 'adapter_config.json')
    missing = os.path.join(constants.HF_HUB_CACHE, 'models--timm-sk--sknet_atto', '.no_exist', published)
    assert os.listdir(missing) == ['adapter_config.json']  # as transformers expects after a first look
    for revision in ('v2.0', '0' * 40, published[:12]):
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download(REPO, 'config.json', revision=revision)
        with pytest.raises(RevisionNotFoundError):
            api.snapshot_download(REPO, revision=revision)
    for client, status in ((api, 404), (HfApi(endpoint=hub.endpoint, token=False), 401)):
        with pytest.raises(RepositoryNotFoundError) as raised:
            client.hf_hub_download('timm-sk/other', 'config.json')
        assert raised.value.response.status_code == status
        assert not client.repo_exists('timm-sk/other')


def test_names_that_exist(hub, api, published):
    with pytest.raises(HfHubHTTPError, match='already created'):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True) == f'{hub.endpoint}/{REPO}'
    api.create_tag(REPO, tag='v1.0')
    api.upload_file(repo_id=REPO, path_in_repo='config.json', path_or_fileobj=b'{"a": 1}')
    with pytest.raises(HfHubHTTPError, match='409'):
        api.create_tag(REPO, tag='v1.0')
    api.create_tag(REPO, tag='v1.0', exist_ok=True)
    assert hub.repos[REPO].tags == {'v1.0': published}
    for revision, size in (('v1.0', 2), (published, 2), ('main', 8), (None, 8)):
        assert os.path.getsize(api.hf_hub_download(REPO, 'config.json', revision=revision)) == size


@pytest.mark.parametrize('token', [False, 'hf_wrong'])
def test_writing_without_the_owners_token(hub, published, token):
    api = HfApi(endpoint=hub.endpoint, token=token)
    for write in (
        lambda: api.create_repo('timm-sk/new'),
        lambda: api.create_tag(REPO, tag='v1'),
        lambda: api.upload_file(repo_id=REPO, path_in_repo='a', path_or_fileobj=b'a'),
    ):
        with pytest.raises(HfHubHTTPError, match='401'):
            write()
    assert (hub.repos[REPO].head, hub.repos[REPO].tags, list(hub.repos)) == (published, {}, [REPO])
