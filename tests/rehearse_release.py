"""A rehearsal of the release on a hub on this machine, with the commands that a release takes.

`python tests/rehearse_release.py [NAME…]` fills a store with made-up weights of the named checkpoints, in their makers'
files and through the real conversion, then publishes everything twice, fetches one of them with an empty store, and
verifies it. Rows whose weights are not in the store fail in it, as they do without a network.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_server import Hub
from upstream_files import rehearse

from timm_sk.checkpoints import CHECKPOINTS

ROOT = Path(__file__).resolve().parent.parent
NAMES = ['skresnet18.ra_in1k', 'resnest14d.gluon_in1k', 'resnest18.imgclsmob_in1k']


def run(command: str, environment: dict[str, str]) -> int:
    """Run a shell command as a user would, showing it."""
    print(f'\n$ {command}', flush=True)
    return subprocess.run(command, shell=True, cwd='/', env={**os.environ, **environment}).returncode


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch, Hub() as hub:
        folder = Path(scratch)
        for name in names:
            row = CHECKPOINTS[name]
            rehearse(row, next(source for source in row.sources if source.has_classifier), folder)
        environment = {
            **hub.environment(folder / 'home'),
            'HF_TOKEN': 'hf_owner',
            'PYTHONPATH': str(ROOT),
            'TIMM_SK_HOME': str(folder / 'store'),
            'COLUMNS': '160',
        }
        command = f'{sys.executable} -m timm_sk weights'
        first = names[0]
        run(f'{command} publish {first} --org rehearsal --dry-run', environment)
        run(f'{command} publish --all --org rehearsal', environment)
        written = {kind: count for (_, kind), count in hub.requests.items() if kind in ('create', 'commit', 'tag')}
        print(f'\nRequests that wrote: {written}')
        hub.requests.clear()
        run(f'{command} publish --all --org rehearsal', environment)
        written = {kind: count for (_, kind), count in hub.requests.items() if kind in ('create', 'commit', 'tag')}
        print(f'\nRequests that wrote: {written}')
        loads = (
            f"import timm, timm_sk; m = timm.create_model('hf-hub:rehearsal/{first}', pretrained=True); "
            f"print(m.pretrained_cfg['tag'], sum(p.numel() for p in m.parameters()))"
        )
        run(f'{sys.executable} -c "{loads}"', environment)
        run(f'{command} verify {first}', environment)


if __name__ == '__main__':
    main(sys.argv[1:] or NAMES)
