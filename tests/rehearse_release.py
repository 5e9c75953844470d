"""A rehearsal of the release on a hub on this machine, with the commands that a release takes.

`python tests/rehearse_release.py [NAME…]` puts made-up weights of the named checkpoints onto a server, in the files of
their makers, tells the table their hashes, and then publishes everything that it names, twice; a row without a licence
is among them. One of the repositories is loaded by timm.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from hub_server import Hub

NAMES = ['skresnet18.ra_in1k', 'resnest18.imgclsmob_in1k', 'resnest50d_1s1x64d.gluon_in1k', 'sknet50.implus_in1k']


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch, Hub() as hub:
        own = dict(HF_TOKEN='hf_owner', TIMM_SK_HOME=f'{scratch}/store', COLUMNS='150')
        os.environ.update({**hub.environment(Path(scratch) / 'home'), **own})
        rehearse(names, hub, Path(scratch))  # what it imports reads these variables


def rehearse(names: list[str], hub: Hub, folder: Path) -> None:
    import timm
    import torch
    from upstream_files import filled_weights, write_original

    import timm_sk.publishing.upload
    from timm_sk.checkpoints import CHECKPOINTS
    from timm_sk.cli import app
    from timm_sk.pretrained import sha256_of

    def run(command: str) -> None:
        print(f'\n$ timm-sk {command}', flush=True)
        try:
            app(command.split(), standalone_mode=False)
        except SystemExit as error:
            print(f'exit code {error.code}')
        writes = {kind: count for (_, kind), count in hub.requests.items() if kind in ('create', 'commit', 'tag')}
        print(f'requests that wrote: {writes or "none"}', flush=True)
        hub.requests.clear()

    for name in names:
        row = CHECKPOINTS[name]
        source = next(source for source in row.sources if source.has_classifier)
        file = folder / name
        write_original(filled_weights(row), row, source, file)
        hub.files[name] = file.read_bytes()
        digest = sha256_of(file)
        served = replace(source, kind='url', location=f'{hub.endpoint}/files/{name}', sha256=digest, content_sha1=None)
        CHECKPOINTS[name] = replace(row, sources=(served,))
    kept = ['sknet_atto.digits', 'sknet_atto.shapes', *names]
    timm_sk.publishing.upload.CHECKPOINTS = {name: CHECKPOINTS[name] for name in kept}
    first = names[0]
    run(f'weights publish {first} --org rehearsal --dry-run')
    run('weights publish --all --org rehearsal')
    run('weights publish --all --org rehearsal')
    model = timm.create_model(f'hf-hub:rehearsal/{first}', pretrained=True)
    expected = filled_weights(CHECKPOINTS[first])
    equal = all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    print(f'\nhf-hub:rehearsal/{first}: every tensor as published: {equal}')


if __name__ == '__main__':
    main(sys.argv[1:] or NAMES)
