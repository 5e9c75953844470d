"""Concurrent and killed processes never leave an incomplete checkpoint in the store."""

import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Fault
from huggingface_hub import file_download
from small_net import NAME, assert_loaded, create, sha256

from timm_sk.checkpoints import Source
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import fetch, hf_hub, http_download, import_checkpoint, resolve, store_file
from timm_sk.pretrained import store as store_module

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')]

# Functions at whose start or end a process is killed, in the order in which they run
RELEASE = [(http_download, '_receive'), (resolve, 'check_against_table'), (import_checkpoint, 'read_checkpoint')]
HUB = [(file_download, 'http_get'), (hf_hub, 'check_against_table')]
STORED = [(store_module, 'save_safetensors'), (Path, 'replace')]
POINTS = [
    *(('release', *point) for point in (*RELEASE, *STORED, (resolve, 'record_first_seen'))),
    *(('hub', *point) for point in HUB),
    *(('convert', *point) for point in (RELEASE[-1], *STORED)),
]


@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize(
    ('job', 'owner', 'name'),
    POINTS,
    ids=[f'{job}-{owner.__name__.split(".")[-1]}.{name}' for job, owner, name in POINTS],
)
def test_killed_process(online, store, row, release, hub_repo, weights, tmp_path, job, owner, name, after):
    hub_repo()
    content, source = release()
    checkpoint = row(Source(kind='hub', location='makers/atto') if job == 'hub' else source)
    shapes = shapes_of(checkpoint)
    file = tmp_path / 'downloaded.pth'
    file.write_bytes(content)

    def run():
        if job == 'convert':
            return store_file(file, checkpoint, shapes)
        return fetch(checkpoint, lambda: shapes, store_all=True)

    def killed():
        function = getattr(owner, name)

        def kill(*args, **kwargs):
            if after:
                function(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, kill)
        run()

    torch.set_num_threads(1)  # forks of a process with more may hang
    assert os.waitpid(fork(killed), 0)[1] == signal.SIGKILL
    was_stored = store.find(checkpoint) is not None  # raises an error for a checkpoint that is not complete
    assert run() == store.folder(NAME) / 'model.safetensors'
    leftovers = [*store.root.glob('.*.new'), *store.root.glob('.*.old'), *store.root.glob('.downloads/*')]
    assert was_stored or not leftovers  # removed by the next call that writes
    assert_loaded(create(), weights)


@pytest.mark.parametrize('kind', ['release', 'hub'])
def test_concurrent_processes(hub, online, store, row, release, hub_repo, weights, kind):
    hub_repo()
    content, source = release()
    row(source if kind == 'release' else Source(kind='hub', location='makers/atto', sha256=None))
    hub.faults.append(Fault(request='GET', times=math.inf, rate=4_000_000))
    children = [fork(lambda: assert_loaded(create(), weights)) for _ in range(8)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert hub.requests['GET', 'files' if kind == 'release' else 'resolve'] == 1
    assert_loaded(create(), weights)
    if kind == 'release':
        assert store.origin(NAME).sha256 == sha256(content)


def fork(function):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            function()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return child
