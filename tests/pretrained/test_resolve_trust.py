"""Verification before a tensor is used: by the hash of the table, of the hub, or of the first download."""

import hashlib
import io
import zipfile
from dataclasses import replace

import pytest
import torch
from hub_server import Fault
from huggingface_hub import constants
from small_net import NAME, assert_loaded, create, hub_source, sha256

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.errors import CorruptCheckpointError, MismatchedCheckpointError, UnobtainableCheckpointError
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import store_file

MANUAL = Source(kind='manual', location='https://drive.example/file/d/7/view', format='pytorch')


def test_sha1_of_a_zips_content(hub, online, store, row, release, weights):
    content, source = release()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('atto.pth', content)
    hub.files['atto.pth.zip'] = buffer.getvalue()
    source = replace(source, location=f'{hub.endpoint}/files/atto.pth.zip', format='pytorch in zip')
    row(replace(source, content_sha1='0' * 40))
    with pytest.raises(UnobtainableCheckpointError, match=r'the sha1 of the file in it is \w{40}, the published one 0'):
        create()
    row(replace(source, content_sha1=hashlib.sha1(content).hexdigest()))
    assert_loaded(create(), weights)
    assert store.origin(NAME).pinned


@pytest.mark.parametrize('kind', ['hub', 'url'])
def test_weights_of_another_model(hub, online, store, row, hub_repo, release, weights, kind):
    other = {key: value for key, value in weights.items() if not key.startswith('layer4.')}
    hub_repo('makers/other', state_dict=other)
    other_source = hub_source('makers/other') if kind == 'hub' else release('other.pth', other)[1]
    row(other_source)
    with pytest.raises(
        UnobtainableCheckpointError, match=r'The checkpoint is not of this model\. Keys missing: layer4'
    ):
        create()
    assert not store.folder(NAME).exists()
    row(other_source, release()[1])
    assert_loaded(create(), weights)


def test_unpinned_hub_file_changes(hub, online, store, row, hub_repo, weights):
    hub_repo()
    row(hub_source())
    create()
    first = sha256(hub.repos['makers/atto'].files()['model.safetensors'].content)
    changed = {**weights, 'fc.bias': weights['fc.bias'] + 1}
    hub_repo(state_dict=changed)
    second = sha256(hub.repos['makers/atto'].files()['model.safetensors'].content)
    (record,) = (store.root / '.first-seen').iterdir()
    with pytest.raises(UnobtainableCheckpointError, match=rf'sha256 is {second}, it was {first}.*delete {record} to a'):
        create()
    record.unlink()
    assert_loaded(create(), changed)


def test_unpinned_release_changes(hub, online, store, row, release, weights):
    row(release()[1])
    create()
    changed = {**weights, 'fc.bias': weights['fc.bias'] + 1}
    release(state_dict=changed)
    assert_loaded(create(), weights)
    store.folder(NAME).rename(store.root / 'away')
    with pytest.raises(UnobtainableCheckpointError, match=r'has changed since it was first used'):
        create()
    assert not list(store.root.glob('.downloads/*'))


def test_stored_file_differs_from_a_new_pin(hub, online, store, row, release, weights):
    content, source = release()
    row(source)
    create()
    row(replace(source, sha256='0' * 64))
    with pytest.raises(
        UnobtainableCheckpointError, match=rf'converted from a file with sha256 {sha256(content)}, the pub'
    ):
        create()


def test_hub_without_a_hash(hub, online, row, hub_repo):
    hub_repo()
    hub.faults.append(Fault(request='HEAD', times=9, headers={'X-Linked-Etag': '"v1-of-the-mirror"'}))
    row(hub_source())
    with pytest.raises(
        UnobtainableCheckpointError, match=r'cannot be verified: its hash on the hub, "v1-of-the-mirror"'
    ):
        create()
    content = hub.repos['makers/atto'].files()['model.safetensors'].content
    row(hub_source(sha256=sha256(content), size=7))
    with pytest.raises(UnobtainableCheckpointError, match=rf'has {len(content)} bytes, the published file 7\.'):
        create()
    row(hub_source(sha256=sha256(content)))
    create()


def test_git_blob_hash(hub, online, row, hub_repo, weights, monkeypatch):
    monkeypatch.setattr('hub_server.is_lfs', lambda path, size: False)
    hub_repo()
    row(hub_source())
    assert_loaded(create(), weights)
    (blob,) = (online / 'models--makers--atto' / 'blobs').iterdir()
    assert len(blob.name) == 40
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(
        UnobtainableCheckpointError, match=rf'is damaged: its hash is \w{{40}}, on the hub it is {blob.name}'
    ):
        create()


def test_store_file_checks_the_tables_hashes(online, store, row, release, weights, tmp_path):
    content, source = release()
    pinned = row(replace(source, sha256=sha256(content)))
    (tmp_path / 'right').write_bytes(content)
    torch.save(weights, tmp_path / 'other')
    with pytest.raises(CorruptCheckpointError, match=rf'other is none of the published files of {NAME}\. .*sha256 is'):
        store_file(tmp_path / 'other', pinned, shapes_of(pinned))
    store_file(tmp_path / 'right', pinned, shapes_of(pinned))
    assert (store.origin(NAME).kind, store.origin(NAME).pinned) == ('url', True)
    with pytest.raises(MismatchedCheckpointError, match='not of this model'):
        store_file(tmp_path / 'right', row(MANUAL), shapes_of(CHECKPOINTS['skresnet18.ra_in1k']))


def test_token_for_a_private_repository(hub, online, row, hub_repo, weights, monkeypatch):
    hub_repo()
    hub.repos['makers/atto'].private = True
    row(hub_source())
    with pytest.raises(UnobtainableCheckpointError, match='RepositoryNotFoundError'):
        create()
    monkeypatch.setenv('HF_TOKEN', 'hf_owner')
    assert_loaded(create(), weights)
