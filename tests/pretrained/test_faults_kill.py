"""Concurrent and killed processes never leave an incomplete checkpoint in the store."""

import math
import os
import signal
import sys

import pytest
from hub_server import Fault
from kill_store import PHASES, Killing
from small_net import NAME, assert_loaded, create, sha256

from timm_sk.checkpoints import Source

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')]


@pytest.mark.parametrize('job', ['release', 'hub', 'convert'])
def test_killed_jobs(hub, online, store, tmp_path, job):
    """Those of `tests/kill_store.py`, but few; it checks the store after each."""
    found = Killing(tmp_path, hub, seed=1).kill(job, 4)
    assert sum(found[phase] for phase in PHASES) == 4


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
