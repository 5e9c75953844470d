"""Kill processes at random moments of a pull and of a conversion, and check the store afterwards.

    python tests/kill_store.py 100

kills 100 processes of each job and prints their phases. Each job is a fork of this process. The moment is random
within the duration of the job; the server and the rename of the finished folder are slowed down. Half of the jobs
start from what a killed one left. POSIX only.
"""

import io
import math
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import timm
import torch
from hub_server import Fault, Hub
from huggingface_hub import constants, file_download
from random_weights import fill_model
from safetensors.torch import load_file

import timm_sk  # noqa: F401  (registers the models)
from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import (
    Store,
    fetch,
    hf_hub,
    http_download,
    import_checkpoint,
    resolve,
    save_safetensors,
    sha256_of,
    store,
    store_file,
)

NAME = 'sknet_atto.digits'
PHASES = ('start', 'body', 'verify', 'read', 'write', 'rename', 'end')
RATE = 2_500_000  # bytes per second, so that the body takes a third of one
RENAME_PAUSE = 0.03  # seconds before and after


class Killing:
    """The jobs to kill, with their server and folders.

    Args:
        home: An empty folder.
        server: A running server.
        seed: Seed of the random moments.
    """

    def __init__(self, home: Path, server: Hub, *, seed: int) -> None:
        self.random = random.Random(seed)
        self.phase = mmap.mmap(-1, 1)  # shared with the forks
        self.store, self.cache, self.file = Store(home / 'store'), home / 'cache', home / 'fetched.pth'
        self.right = fill_model(timm.create_model(NAME)).state_dict()
        buffer = io.BytesIO()
        torch.save(self.right, buffer)
        self.file.write_bytes(buffer.getvalue())
        server.files['atto.pth'] = buffer.getvalue()
        (home / 'repository').mkdir()
        save_safetensors(self.right, home / 'repository' / 'model.safetensors')
        server.add('makers/atto', home / 'repository')
        server.faults.append(Fault(request='GET', times=math.inf, rate=RATE))
        row = CHECKPOINTS[NAME]
        release = Source(kind='url', location=f'{server.endpoint}/files/atto.pth', sha256=sha256_of(self.file))
        self.from_release = replace(row, sources=(release,))
        self.from_hub = replace(row, sources=(Source(kind='hub', location='makers/atto'),))
        self.shapes = shapes_of(row)
        self.jobs: dict[str, Callable[[], Path]] = dict(
            release=lambda: fetch(self.from_release, lambda: self.shapes),
            hub=lambda: fetch(self.from_hub, lambda: self.shapes, store_all=True),
            convert=lambda: store_file(self.file, self.from_release, self.shapes),
        )

    def kill(self, name: str, count: int) -> Counter[str]:
        """Kill a job `count` times; counts the kills by phase, and those after which it was stored."""
        start = time.monotonic()
        assert self._is_killed(name, after=math.inf) is False
        duration = time.monotonic() - start
        self._clear()
        found: Counter[str] = Counter()
        while sum(found[phase] for phase in PHASES) < count:
            if not self._is_killed(name, after=self.random.uniform(0, duration)):
                self._clear()
                continue
            found[PHASES[self.phase[0]]] += 1
            if shown := self.store.find(self.from_release):  # raises where it is not whole
                self._check(shown)
                found['stored'] += 1
            if self.random.random() < 0.5:
                self._check(self.jobs[name]())
                if not shown:  # else this load had nothing to write, and left what there was to the next that has
                    assert not [
                        *self.store.root.glob('.*.new'),
                        *self.store.root.glob('.*.old'),
                        *self.store.root.glob('.downloads/*'),
                    ]
                self._clear()
        self._check(self.jobs[name]())
        self._clear()
        return found

    def _is_killed(self, name: str, *, after: float) -> bool:
        """Run a job in a fork that is killed after some seconds; False if it ended before."""
        self.phase[0] = 0
        child = os.fork()
        if child == 0:
            try:
                self._mark_phases()
                self.jobs[name]()
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        if after < math.inf:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        return status == signal.SIGKILL

    def _mark_phases(self) -> None:
        """Record the phase of this process, and slow down the rename."""
        self._mark('body', http_download, '_receive')
        self._mark('body', file_download, 'http_get')
        self._mark('verify', resolve, 'check_against_table')
        self._mark('verify', hf_hub, 'check_against_table')
        self._mark('read', import_checkpoint, 'read_checkpoint')
        self._mark('write', store, 'save_safetensors')
        self._mark('rename', Path, 'replace', only=lambda path, _: path.suffix == '.new', pause=RENAME_PAUSE)
        self._mark('end', resolve, 'record_first_seen')

    def _mark(
        self, phase: str, owner: Any, name: str, *, only: Callable[..., bool] | None = None, pause: float = 0
    ) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if only is not None and not only(*args):
                return function(*args, **kwargs)
            before, self.phase[0] = self.phase[0], PHASES.index(phase)
            time.sleep(pause)
            result = function(*args, **kwargs)
            time.sleep(pause)
            self.phase[0] = before
            return result

        setattr(owner, name, marked)

    def _check(self, path: Path) -> None:
        loaded = load_file(path)
        assert list(loaded) == list(self.right)
        assert all(torch.equal(loaded[key], value) for key, value in self.right.items())

    def _clear(self) -> None:
        shutil.rmtree(self.store.root, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)


def main(count: int, seed: int) -> None:
    torch.set_num_threads(1)  # forks of a process with more may hang
    with tempfile.TemporaryDirectory() as home, Hub() as server:
        os.environ['TIMM_SK_HOME'] = str(Path(home) / 'store')
        for name, value in server.client_settings(Path(home) / 'cache').items():
            setattr(constants, name, value)
        killing = Killing(Path(home), server, seed=seed)
        print('job', *PHASES, 'stored by then', sep='\t')
        for name in killing.jobs:
            found = killing.kill(name, count)
            print(name, *(found[phase] for phase in (*PHASES, 'stored')), sep='\t', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
