"""Faults of server, network and disk: a load gives the right weights or an error that says why not."""

import math
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hub_server import Fault
from huggingface_hub import constants
from limits import file_size_limit, no_home_folder, without_privileges
from small_net import NAME, assert_loaded, create, sha256

from timm_sk.checkpoints import Source
from timm_sk.errors import UnobtainableCheckpointError, UnwritableStoreError
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import fetch, hf_hub, store_file

pytestmark = pytest.mark.deep

ALWAYS = math.inf
HUB_GET, HUB_HEAD, RELEASE = 'GET /makers/atto/resolve', 'HEAD /makers/atto/resolve', 'GET /files/'
HUB = Source(kind='hub', location='makers/atto')

RECOVERED = {
    '500 on the release': [Fault(request=RELEASE, status=500, times=3)],
    '429 on the release': [Fault(request=RELEASE, status=429, headers={'Retry-After': '7'})],
    'release cut': [Fault(request=RELEASE, cut=200_000, times=3)],
    'release truncated': [Fault(request=RELEASE, length=200_000)],
    'release shorter than announced': [Fault(request=RELEASE, length=900_000, times=3)],
    'release flipped in transit': [Fault(request=RELEASE, flip=400_000)],
    'release slow': [Fault(request=RELEASE, rate=4_000_000)],
    '500 on the hub': [Fault(request=HUB_HEAD, status=500, times=2)],
    '429 on the hub': [Fault(request=HUB_GET, status=429, headers={'Retry-After': '7'})],
    'hub cut': [Fault(request=HUB_GET, cut=200_000, times=3)],
    'hub flipped in transit': [Fault(request=HUB_GET, flip=400_000)],
    'hub slow': [Fault(request=HUB_GET, rate=4_000_000)],
}
FATAL = {
    '500 on the release': ([Fault(request=RELEASE, status=500, times=ALWAYS)], r'answers 500 .*, 4 times'),
    'release truncated': ([Fault(request=RELEASE, length=200_000, times=ALWAYS)], 'is damaged: its sha256 is'),
    'release flipped': ([Fault(request=RELEASE, flip=400_000, times=ALWAYS)], 'is damaged: its sha256 is'),
    'release silent': ([Fault(request=RELEASE, delay=ALWAYS, times=ALWAYS)], r'TimeoutError|timed out'),
    '500 on the hub': ([Fault(request=HUB_HEAD, status=500, times=ALWAYS)], r'the hub does not answer \(.*500'),
    '500 on the file of the hub': ([Fault(request=HUB_GET, status=500, times=ALWAYS)], r'HfHubHTTPError: .*500'),
    '429 on the file of the hub': ([Fault(request=HUB_GET, status=429, times=ALWAYS)], r'HfHubHTTPError: .*429'),
    'hub truncated': ([Fault(request=HUB_GET, length=200_000, times=ALWAYS)], 'file should be of size'),
    'hub flipped': ([Fault(request=HUB_GET, flip=400_000, times=ALWAYS)], 'is damaged: its hash is'),
    'hub wrong length': (
        [Fault(request=HUB_HEAD, headers={'X-Linked-Size': '7'}, times=ALWAYS)],
        'file should be of size 7',
    ),
    'hub silent': ([Fault(request=HUB_HEAD, delay=ALWAYS, times=ALWAYS)], 'the hub does not answer'),
}
NETWORK = ('release silent', '500 on the hub', 'hub silent')


@pytest.fixture
def hits(record_property):
    """Report how often each fault struck."""
    faults = []
    yield faults
    record_property('hits', [fault.hits for fault in faults])
    assert all(fault.hits for fault in faults)


def source_of(name, release, hub_repo):
    if 'hub' in name:
        hub_repo()
        return HUB
    content, source = release()
    return replace(source, sha256=sha256(content))


@pytest.mark.parametrize('name', RECOVERED)
def test_transient_fault(hub, online, row, release, hub_repo, weights, waits, hits, name):
    row(source_of(name, release, hub_repo))
    hits += map(replace, RECOVERED[name])
    hub.faults += hits
    for _ in range(2):
        assert_loaded(create(), weights)
    if '429' in name:
        assert [round(wait) for wait in waits] in ([7], [8])  # huggingface_hub adds one


@pytest.mark.parametrize('name', FATAL)
def test_permanent_fault(hub, online, store, row, release, hub_repo, weights, waits, hits, name, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.3)
    monkeypatch.setattr(constants, 'HF_HUB_ETAG_TIMEOUT', 0.3)
    monkeypatch.setattr('huggingface_hub.file_download._ETAG_RETRY_TIMEOUT', 0.3)
    source = source_of(name, release, hub_repo)
    row(source)
    faults, message = FATAL[name]
    hits += map(replace, faults)
    hub.faults += hits
    with pytest.raises(UnobtainableCheckpointError) as caught:
        create()
    assert re.search(message, str(caught.value)), caught.value
    assert source.location in str(caught.value)
    assert ('Check the network' in str(caught.value)) == (name in NETWORK)
    assert str(caught.value).startswith('Could not load' if 'damaged' in message else 'Could not download')
    assert not store.folder(NAME).exists()
    assert not list(online.glob('*/blobs/*'))  # nothing damaged for other programs to load
    hub.faults.clear()
    assert_loaded(create(), weights)


def test_notice_of_a_slow_hub(hub, online, row, hub_repo, weights, monkeypatch, caplog):
    monkeypatch.setattr(hf_hub, '_SECONDS_BEFORE_NOTICE', 0.2)
    hub_repo()
    row(HUB)
    hub.faults.append(Fault(request=HUB_GET, delay=1))
    assert_loaded(create(), weights)
    assert f'Still waiting for model.safetensors of makers/atto, or for its lock in {online}.' in caplog.text
    caplog.clear()
    assert_loaded(create(), weights)
    assert 'Still waiting' not in caplog.text


def test_interrupted_download_is_resumed(hub, online, store, row, release, weights):
    content, source = release()
    checkpoint = row(replace(source, sha256=sha256(content)))

    def interrupt(received, total):
        if received > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(checkpoint, lambda: shapes_of(checkpoint), progress=interrupt)
    (part,) = store.downloads(NAME).iterdir()
    received = []
    fetch(checkpoint, lambda: shapes_of(checkpoint), progress=lambda there, _: received.append(there))
    assert received[0] > 300_000
    assert not part.exists()
    assert_loaded(create(), weights)


def test_download_of_a_killed_process_is_used(hub, online, store, row, release, weights):
    content, source = release()
    row(source)
    store.downloads(NAME).mkdir(parents=True)
    (store.downloads(NAME) / 'atto.pth').write_bytes(content)
    assert_loaded(create(), weights)
    assert not hub.requests
    assert not store.downloads(NAME).exists()


def test_truncated_release_without_a_hash(hub, online, store, row, release, weights, waits, hits):
    row(release()[1])
    hits.append(Fault(request=RELEASE, length=200_000))
    hub.faults += hits
    with pytest.raises(UnobtainableCheckpointError, match=r'atto\.pth cannot be read as a checkpoint'):
        create()
    assert not list(store.root.rglob('*.pth*'))
    assert_loaded(create(), weights)


@pytest.mark.parametrize('where', ['store', 'cache'])
def test_damaged_file_is_downloaded_again(hub, online, store, row, release, hub_repo, weights, caplog, where):
    hub_repo()
    row(HUB if where == 'cache' else release()[1])
    create()
    path = store.folder(NAME) / 'model.safetensors' if where == 'store' else next(online.glob('*/blobs/*'))
    damaged = bytearray(path.read_bytes())
    damaged[500_000] ^= 1
    for _ in range(2):
        stat = path.stat()
        path.write_bytes(damaged)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a stamp would not see it
        requests = hub.requests['GET', 'files'] + hub.requests['GET', 'resolve']
        caplog.clear()
        assert_loaded(create(), weights)
        assert hub.requests['GET', 'files'] + hub.requests['GET', 'resolve'] == requests + 1
        assert str(path if where == 'store' else 'model.safetensors') in caplog.text
        assert 'is damaged' in caplog.text


@pytest.mark.parametrize('name', ['origin.json', 'model.safetensors'])
@pytest.mark.parametrize('damage', ['remove', 'empty', 'half'])
def test_damaged_folder(online, store, row, release, weights, name, damage):
    row(release()[1])
    create()
    path = store.folder(NAME) / name
    content = path.read_bytes()
    path.unlink()
    if damage != 'remove':
        path.write_bytes(content[: len(content) // 2 if damage == 'half' else 0])
    assert_loaded(create(), weights)
    assert path.stat().st_size == pytest.approx(len(content), abs=40)


@pytest.mark.skipif(os.name != 'posix', reason='limits of POSIX')
@pytest.mark.parametrize('limit', [100_000, 500_000, 835_000])
def test_full_disk(online, store, row, release, weights, limit):
    row(release()[1])
    with file_size_limit(limit), pytest.raises(UnobtainableCheckpointError) as caught:
        create()
    assert f'The local store {store.root} cannot be written' in str(caught.value)
    assert 'set TIMM_SK_HOME to a folder that can be written' in str(caught.value)
    assert [p for p in store.root.rglob('*') if p.is_file() and p.suffix != '.lock'] == []
    assert_loaded(create(), weights)


@pytest.mark.skipif(os.name != 'posix', reason='limits of POSIX')
def test_full_disk_of_the_clients_cache(online, row, hub_repo, weights):
    hub_repo()
    row(HUB)
    with file_size_limit(300_000), pytest.raises(UnobtainableCheckpointError, match=rf'OSError: .*cache: {online}'):
        create()
    assert_loaded(create(), weights)


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='permissions of POSIX')
def test_read_only_store(online, store, row, release, weights, tmp_path):
    checkpoint = row(release()[1])
    store.root.mkdir()
    store.root.chmod(0o555)
    with pytest.raises(
        UnobtainableCheckpointError, match=rf'The local store {store.root} cannot be written \(.*denied'
    ):
        without_privileges(create)
    assert not list(store.root.iterdir())
    torch.save(weights, tmp_path / 'file')
    with pytest.raises(UnwritableStoreError, match=str(store.root)):
        without_privileges(lambda: store_file(tmp_path / 'file', checkpoint, shapes_of(checkpoint)))
    store.root.chmod(0o755)
    create()
    for folder in (store.root, store.folder(NAME)):
        folder.chmod(0o555)
    assert_loaded(without_privileges(create), weights)


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='permissions of POSIX')
def test_read_only_cache_of_the_client(hub, online, store, row, hub_repo, weights, caplog):
    hub_repo()
    row(HUB)
    online.mkdir()
    online.chmod(0o555)
    with pytest.raises(UnobtainableCheckpointError, match=rf'PermissionError: .*cache: {online}'):
        without_privileges(create)
    online.chmod(0o755)
    create()
    (blob,) = online.glob('*/blobs/*')
    content = bytearray(blob.read_bytes())
    for folder, _, _ in os.walk(online):
        os.chmod(folder, 0o555)
    assert_loaded(without_privileges(create), weights)
    content[500_000] ^= 1
    blob.write_bytes(content)
    with pytest.raises(
        UnobtainableCheckpointError, match=r'model\.safetensors is damaged.*not be downloaded again: Perm'
    ):
        without_privileges(create)
    content[500_000] ^= 1
    blob.write_bytes(content)
    for folder, _, _ in os.walk(online):
        os.chmod(folder, 0o755)
    (record,) = store.root.glob('.first-seen/*')
    record.unlink()
    store.root.chmod(0o555)
    record.parent.chmod(0o555)
    assert_loaded(without_privileges(create), weights)
    assert 'Later changes of hub makers/atto will not be detected: The local store' in caplog.text


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='permissions of POSIX')
@pytest.mark.parametrize('pinned', [True, False])
def test_unreadable_store(hub, online, store, row, hub_repo, weights, pinned):
    hub_repo()
    content = hub.repos['makers/atto'].files()['model.safetensors'].content
    row(Source(kind='hub', location='makers/atto', sha256=sha256(content) if pinned else None))
    store.root.mkdir()
    store.root.chmod(0)
    try:
        if pinned:
            assert_loaded(without_privileges(create), weights)
        else:  # whether the file has changed cannot be known
            with pytest.raises(UnobtainableCheckpointError) as caught:
                without_privileges(create)
            assert re.search(r'\n- local store: .* cannot be read .*set TIMM_SK_HOME', str(caught.value))
            assert re.search(r'\n- hub makers/atto: The record .* cannot be read', str(caught.value))
    finally:
        store.root.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='permissions of POSIX')
def test_unreadable_file_in_the_cache(hub, online, row, hub_repo, release, weights):
    hub_repo()
    row(HUB)
    create()
    (blob,) = online.glob('*/blobs/*')
    blob.chmod(0)
    row(HUB, release()[1])
    assert_loaded(without_privileges(create), weights)
    assert hub.requests['GET', 'files'] == 1


@pytest.mark.parametrize('home', [None, '~nosuchuser/x'])
def test_no_home_folder(online, row, release, hub_repo, weights, caplog, monkeypatch, home):
    no_home_folder(monkeypatch)
    if home is None:
        monkeypatch.delenv('TIMM_SK_HOME')
    else:
        monkeypatch.setenv('TIMM_SK_HOME', home)
    hub_repo()
    row(HUB)
    assert_loaded(create(), weights)
    assert 'Later changes of hub makers/atto will not be detected: The local store has no folder' in caplog.text
    row(release()[1])
    given = 'is not set' if home is None else f'is "{home}"'
    with pytest.raises(
        UnobtainableCheckpointError, match=rf'atto\.pth: The local store has no folder: TIMM_SK_HOME {given}'
    ) as caught:
        create()
    assert str(caught.value).endswith('Set TIMM_SK_HOME to a folder that can be written.')


def test_no_network(online, store, row, waits, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as server:
        nowhere = f'http://127.0.0.1:{server.getsockname()[1]}'
    template = nowhere + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'ENDPOINT', nowhere)
    url = Source(kind='url', location=f'{nowhere}/atto.pth')
    row(HUB, Source(kind='hub', location='makers/second'), url)
    start = time.monotonic()
    with pytest.raises(UnobtainableCheckpointError) as caught:
        create()
    lines = str(caught.value).splitlines()
    assert lines[1].startswith('- hub makers/atto: the hub does not answer (')
    assert lines[2] == '- hub makers/second: it is not in the cache of huggingface_hub.'
    assert re.fullmatch(rf'- url {url.location}: the server cannot be reached \(.*refused\), 4 times\.', lines[3])
    assert lines[4].startswith('Check the network')
    assert time.monotonic() - start + sum(waits) < 15
    assert not list(store.root.glob('.downloads/*'))


def test_concurrent_fetch(hub, online, store, row, release, weights):
    checkpoint = row(release()[1])
    hub.faults.append(Fault(request=RELEASE, times=ALWAYS, rate=4_000_000))
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: fetch(checkpoint, lambda: shapes_of(checkpoint)), range(8)))
    assert paths == {store.folder(NAME) / 'model.safetensors'}
    assert hub.requests['GET', 'files'] == 1
    assert_loaded(create(), weights)
