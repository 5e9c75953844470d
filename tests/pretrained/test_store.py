"""The local store: its files, its place, what killed processes leave."""

import json
import os
import signal
import stat
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from limits import without_privileges
from safetensors import safe_open
from safetensors.torch import load_file
from small_net import NAME, assert_loaded, create

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.errors import CorruptCheckpointError, UnobtainableCheckpointError, UnwritableStoreError
from timm_sk.pretrained import Store, save_safetensors, sha256_of, store_root
from timm_sk.pretrained import store as store_module

TENSORS = {
    'z': torch.randn(3, 2),
    'count': torch.tensor(7),
    'a.half': torch.randn(4, 1).bfloat16(),
    'm': torch.arange(6).view(2, 3).t().double(),  # not contiguous
    'empty': torch.zeros(0, 3),
}


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_safetensors(TENSORS, path, metadata=dict(format='pt', source='test'))
    loaded = load_file(path)
    assert [k for k in loaded if k != 'empty'] == [k for k in TENSORS if k != 'empty']
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in TENSORS.items())
    with safe_open(path, 'pt') as file:
        assert file.metadata() == dict(format='pt', source='test')
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


def test_file_permissions(tmp_path):
    (tmp_path / 'plain').touch()
    save_safetensors(TENSORS, tmp_path / 'x.safetensors')
    assert stat.S_IMODE((tmp_path / 'x.safetensors').stat().st_mode) == stat.S_IMODE(
        (tmp_path / 'plain').stat().st_mode
    )


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_safetensors(TENSORS, path)
    digest = sha256_of(path)
    with pytest.raises(KeyError):
        save_safetensors({**TENSORS, 'complex': torch.zeros(1, dtype=torch.complex64)}, path)
    with pytest.raises(NotImplementedError):
        save_safetensors({**TENSORS, 'meta': torch.zeros(1, device='meta')}, path)
    assert sha256_of(path) == digest
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


RELEASE = Source(kind='url', location='https://makers.example/atto.pth', format='pytorch')


def put(store, tensors, sha256='5' * 64):
    with store.lock(NAME):
        return store.put(CHECKPOINTS[NAME], tensors, RELEASE, sha256=sha256)


@pytest.mark.parametrize(
    ('platform', 'variables', 'expected'),
    [
        ('linux', dict(TIMM_SK_HOME='/shared/weights'), '/shared/weights'),
        ('linux', dict(XDG_CACHE_HOME='/caches'), '/caches/timm_sk'),
        ('linux', {}, '/home/me/.cache/timm_sk'),
        ('darwin', dict(XDG_CACHE_HOME='/caches'), '/home/me/Library/Caches/timm_sk'),
        ('win32', dict(LOCALAPPDATA='/local'), '/local/timm_sk'),
        ('win32', {}, '/home/me/.cache/timm_sk'),
        ('linux', dict(TIMM_SK_HOME='~/weights'), '/home/me/weights'),
    ],
)
def test_store_root(monkeypatch, platform, variables, expected):
    monkeypatch.setattr(sys, 'platform', platform)
    for name in ('TIMM_SK_HOME', 'XDG_CACHE_HOME', 'LOCALAPPDATA'):
        monkeypatch.delenv(name, raising=False)
    for name, value in dict(variables, HOME='/home/me').items():
        monkeypatch.setenv(name, value)
    assert store_root() == Path(expected)


def test_contents_of_a_stored_checkpoint(store, weights):
    path = put(store, weights)
    assert sorted(p.name for p in path.parent.iterdir()) == ['config.json', 'model.safetensors', 'origin.json']
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(store.root.stat().st_mode)
    origin = store.origin(NAME)
    assert (origin.kind, origin.location, origin.sha256) == ('url', RELEASE.location, '5' * 64)
    assert (origin.pinned, origin.has_classifier, origin.stored_sha256) == (False, True, sha256_of(path))
    config = json.loads((path.parent / 'config.json').read_text())
    assert (config['architecture'], config['num_classes']) == ('sknet_atto', 10)
    assert config['label_names'] == list('0123456789')
    assert not {'url', 'hf_hub_id', 'file', 'source'} & set(config['pretrained_cfg'])
    assert config['pretrained_cfg']['mean'] == [0.5, 0.5, 0.5]


def test_put_replaces(store, weights):
    put(store, weights)
    changed = {**weights, 'fc.bias': weights['fc.bias'] + 1}
    path = put(store, changed, sha256='6' * 64)
    assert torch.equal(load_file(path)['fc.bias'], changed['fc.bias'])
    assert store.origin(NAME).sha256 == '6' * 64
    assert not [*store.root.glob('.*.new'), *store.root.glob('.*.old')]


def test_find_missing(store, weights):
    assert store.find(CHECKPOINTS[NAME]) is None
    assert store.origin(NAME) is None
    put(store, {key: value for key, value in weights.items() if not key.startswith('fc.')})
    assert store.find(CHECKPOINTS[NAME]) is None
    assert store.find(CHECKPOINTS[NAME], needs_classifier=False) == store.folder(NAME) / 'model.safetensors'


NOT_TEXTS = dict.fromkeys(
    ('kind', 'location', 'revision', 'filename', 'sha256', 'pinned', 'has_classifier', 'stored_sha256', 'date'), 1
)
INVALID = ['', '{}', '[]', '{"kind": 1}', '{"format_version": 1}', '{"format_version": 9}', '\x00', '[' * 100_000]


@pytest.mark.parametrize('content', [*INVALID, json.dumps(dict(format_version=1, **NOT_TEXTS))])
def test_invalid_origin(store, weights, content):
    path = put(store, weights).parent / 'origin.json'
    path.write_text(content)
    with pytest.raises(CorruptCheckpointError, match=rf'{path} cannot be read \(.*\)\. Delete the folder'):
        store.find(CHECKPOINTS[NAME])


OTHER = 'skresnet34.ra_in1k'


@contextmanager
def locked_by_another_process(store, name):
    """Let another process hold a checkpoint's lock; yields its id."""
    torch.set_num_threads(1)  # forks of a process with more may hang
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with store.lock(name):
            os.write(write, b'x')
            signal.pause()
        os._exit(1)
    os.read(read, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_lock_removes_leftovers(store):
    """What a living process writes stays, however old the clock says it is."""
    old = time.time() - 2 * 24 * 3600
    leftovers = {  # is old, is removed while another process holds the lock of OTHER
        f'.{NAME}.new': (False, True),
        '.skresnet18.ra_in1k.new': (False, True),
        f'.{OTHER}.new': (True, False),
        f'.downloads/{NAME}': (True, False),
        '.downloads/skresnet18.ra_in1k': (False, False),
        '.downloads/skresnet50.ra_in1k': (True, True),
        f'.downloads/{OTHER}': (True, False),
    }
    with locked_by_another_process(store, OTHER):
        for name, (is_old, _) in leftovers.items():
            (store.root / name).mkdir(parents=True)
            (store.root / name / 'model.safetensors').write_bytes(b'half')
            if is_old:
                os.utime(store.root / name, (old, old))
        with store.lock(NAME):
            pass
        assert {name: not (store.root / name).exists() for name in leftovers} == {
            name: is_cleared for name, (_, is_cleared) in leftovers.items()
        }
    with store.lock(NAME):
        assert not [name for name in leftovers if OTHER in name and (store.root / name).exists()]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_lock_of_a_stopped_process(store, monkeypatch, caplog):
    monkeypatch.setattr(store_module, '_SECONDS_BEFORE_NOTICE', 0.1)
    with locked_by_another_process(store, NAME) as child:
        os.kill(child, signal.SIGSTOP)
        killer = threading.Timer(1, os.kill, (child, signal.SIGKILL))
        killer.start()
        with store.lock(NAME):
            killer.join()
    path = store.root / '.locks' / f'{NAME}.lock'
    assert f'Waiting for another process that writes {NAME} and holds {path}.' in caplog.text


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes of POSIX')
@pytest.mark.parametrize('name', ['origin.json', 'model.safetensors'])
def test_pipe_in_the_store(store, weights, name):
    path = put(store, weights).parent / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptCheckpointError, match=f'{path} '):
        store.find(CHECKPOINTS[NAME])


@pytest.mark.parametrize('name', ['.', 'origin.json', 'model.safetensors'])
def test_links_are_not_read(store, weights, tmp_path, name):
    path = put(store, weights).parent / name
    path.rename(tmp_path / 'elsewhere')
    path.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UnwritableStoreError, match=f'{path} is a link, and the local store follows none'):
        store.find(CHECKPOINTS[NAME])


PLANTED = ['.locks', f'.locks/{NAME}.lock', '.downloads', f'.downloads/{NAME}', f'.downloads/{NAME}/atto.pth.partial']
PLANTED += ['.first-seen', NAME, f'.{NAME}.new', f'.{NAME}.old']


@pytest.mark.all_cases
@pytest.mark.parametrize('name', PLANTED)
def test_planted_links(online, store, row, release, weights, tmp_path, name):
    """No link in the store is followed: what it leads to stays as it is."""
    row(release()[1])
    victim = tmp_path / 'victim'
    victim.mkdir()
    (victim / 'model.safetensors').write_bytes(b'precious')
    planted = store.root / name
    planted.parent.mkdir(parents=True)
    planted.symlink_to(victim / 'model.safetensors' if name.endswith(('.lock', '.partial')) else victim)
    with pytest.raises(UnobtainableCheckpointError, match=rf'{planted} is a link, and the local store follows none'):
        create()
    assert [*victim.iterdir()] == [victim / 'model.safetensors']
    assert (victim / 'model.safetensors').read_bytes() == b'precious'
    planted.unlink()
    assert_loaded(create(), weights)


@pytest.mark.skipif(os.name != 'posix', reason='permissions of POSIX')
@pytest.mark.parametrize(('mode', 'group', 'warns'), [(0o777, None, True), (0o775, None, False), (0o775, 12345, True)])
def test_store_that_others_can_write(tmp_path, caplog, mode, group, warns):
    root = tmp_path / 'shared'
    root.mkdir()
    if group:
        if os.geteuid():
            pytest.skip('only root may give a folder to any group')
        os.chown(root, -1, group)
    root.chmod(mode)
    for _ in range(2):
        assert Store(root).find(CHECKPOINTS[NAME]) is None
    assert caplog.text.count(f'Other users can write to the local store {root}') == warns


def test_lock_restores_a_folder_moved_aside(online, store, row, release):
    """Killed between two renames: the old folder is among the leftovers, and there is no new one."""
    changed = row(release()[1])
    create()
    aside = store.root / f'.{NAME}.old'
    store.folder(NAME).replace(aside)
    assert store.find(changed) is None
    with store.lock(NAME):
        assert store.find(changed) == store.folder(NAME) / 'model.safetensors'
    assert not aside.exists()


@pytest.mark.parametrize('refused', ['.', NAME, f'{NAME}/origin.json', f'{NAME}/model.safetensors'])
def test_unreadable_store(store, weights, refused):
    put(store, weights)
    path = store.root / refused
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(CorruptCheckpointError, match=r'cannot be read \(.*denied.*\)\. Make it readable'):
            without_privileges(lambda: store.find(CHECKPOINTS[NAME]))
    finally:
        path.chmod(mode)
