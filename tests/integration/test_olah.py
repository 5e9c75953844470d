"""timm and timm_sk load exported folders from olah, an independent mirror server."""

import hashlib
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
import timm
import torch
from hub_repos import File
from huggingface_hub import constants, get_hf_file_metadata
from random_weights import fill_model
from subprocesses import free_port, run_python

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.publishing.package import package_checkpoint
from timm_sk.publishing.release import build_folder

pytestmark = pytest.mark.integration

CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
repos-path = "{root}/cache"
mirrors-path = ["{root}/mirror"]

[accessibility]
offline = true
"""


def as_git_repository(folder, *, lfs):
    """Commit a folder's files; the weights as they are, or in git-lfs."""

    def git(*arguments):
        identity = ('-c', 'user.name=tests', '-c', 'user.email=tests@example.org')
        subprocess.run(['git', *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git('init', '-q', '-b', 'main')
    if lfs:
        content = (folder / 'model.safetensors').read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        kept = folder / '.git' / 'lfs' / 'objects' / sha256[:2] / sha256[2:4] / sha256
        kept.parent.mkdir(parents=True)
        kept.write_bytes(content)
        (folder / 'model.safetensors').write_bytes(File(content, lfs=True).pointer)
    git('add', '-A')
    git('commit', '-q', '-m', 'Export')


@contextmanager
def olah(root):
    """Run the server; yields its endpoint."""
    port = free_port()
    (root / 'olah.toml').write_text(CONFIG.format(port=port, root=root))
    command = [sys.executable, '-m', 'olah.server', '--config', str(root / 'olah.toml'), '--host', '127.0.0.1']
    command += ['--port', str(port), '--log-path', str(root / 'logs')]
    with (root / 'olah.txt').open('w') as log:
        server = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, env={**os.environ, 'HOME': str(root)})
    try:
        endpoint = f'http://127.0.0.1:{port}'
        deadline = time.monotonic() + 60
        while not is_up(endpoint):
            assert server.poll() is None, (root / 'olah.txt').read_text()
            assert time.monotonic() < deadline, (root / 'olah.txt').read_text()
            time.sleep(0.1)
        yield endpoint
    finally:
        server.terminate()
        server.wait(20)


def is_up(endpoint):
    try:
        with urllib.request.urlopen(f'{endpoint}/api/models/timm-sk/sknet_atto.digits/revision/main', timeout=5):
            return True
    except OSError:
        return False


def test_load_from_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    mirror = tmp_path / 'mirror' / 'models' / 'timm-sk'
    ours = mirror / 'sknet_atto.digits'
    ours.mkdir(parents=True)
    build_folder(CHECKPOINTS['sknet_atto.digits'], ours, repo_id='timm-sk/sknet_atto.digits')
    tuned = fill_model(timm.create_model('skresnet18', num_classes=2)).eval()
    torch.save(dict(state_dict=tuned.state_dict()), tmp_path / 'last.pth')
    package_checkpoint(tmp_path / 'last.pth', arch='skresnet18', tag='pets', out=mirror / 'skresnet18.pets')
    weights = {folder.name: File((folder / 'model.safetensors').read_bytes()) for folder in mirror.iterdir()}
    as_git_repository(ours, lfs=False)
    as_git_repository(mirror / 'skresnet18.pets', lfs=True)
    etags = {'sknet_atto.digits': weights[ours.name].blob, 'skresnet18.pets': weights['skresnet18.pets'].sha256}
    code = """
import sys, timm, torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
if sys.argv[2] == 'timm_sk':
    import timm_sk
model = timm.create_model(f'hf-hub:timm-sk/{sys.argv[1]}', pretrained=True).eval()
golden = load_file(hf_hub_download(f'timm-sk/{sys.argv[1]}', 'golden.safetensors'))
with torch.inference_mode():
    difference = (model(golden['inputs']) - golden['logits']).abs().max() / golden['logits'].abs().max()
print(difference.item() < 1e-5, type(model.layer1[0]).__module__.split('.')[0])
"""
    with olah(tmp_path) as endpoint:
        for name, etag in etags.items():
            assert get_hf_file_metadata(f'{endpoint}/timm-sk/{name}/resolve/main/model.safetensors').etag == etag
        for name, package in (
            ('sknet_atto.digits', 'timm_sk'),
            ('skresnet18.pets', 'timm_sk'),
            ('skresnet18.pets', 'timm'),
        ):
            home = tmp_path / f'home-{name}-{package}'
            online = dict(
                HF_ENDPOINT=endpoint, HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1', HF_HOME=str(home), HF_TOKEN=''
            )
            done = run_python('-W', 'ignore', '-c', code, name, package, **online)
            assert done.stdout == f'True {package}\n', done.stderr
    with pytest.raises(OSError, match='refused'):
        urllib.request.urlopen(endpoint, timeout=5)
