"""`timm-sk demo` and the script of the Space, as processes, and their errors."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from subprocesses import ROOT, free_port
from typer.testing import CliRunner

from timm_sk.cli import app

pytest.importorskip('gradio')
import httpx

from timm_sk.demo.app import DEFAULT_MODEL

SPACE = dict(SPACE_HOST='someone-something.hf.space')


@pytest.mark.deep
def test_space_serves_until_sigterm():
    with tempfile.TemporaryDirectory() as folder:  # short, as it has a socket in it
        serve_until_sigterm(Path(folder))


def serve_until_sigterm(tmp_path):
    port = free_port()
    folders = dict(TMPDIR=str(tmp_path / 'temporary'), HOME=str(tmp_path / 'home'))
    for folder in (*folders.values(), tmp_path / 'cwd'):
        Path(folder).mkdir()
    server = subprocess.Popen(
        [sys.executable, str(ROOT / 'space' / 'app.py')],
        cwd=tmp_path / 'cwd',
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'GRADIO_SERVER_PORT': str(port), **SPACE, **folders},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = server.stdout.readline()  # the address, or nothing if it has ended
        assert line.rstrip('/\n') == f'http://127.0.0.1:{port}'
        assert 'Examples of sknet_atto.shapes' in httpx.get(f'http://127.0.0.1:{port}', timeout=60).text
        for host, status in ((SPACE['SPACE_HOST'], 200), ('attacker.example', 421)):
            answer = httpx.get(f'http://127.0.0.1:{port}', headers=dict(host=host), timeout=60)
            assert answer.status_code == status
        (folder,) = (tmp_path / 'temporary').glob('timm_sk_demo_*')
        assert list(folder.rglob('*.png'))
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        server.kill()
        _, errors = server.communicate()
    assert errors == 'Press Ctrl-C to stop.\n'
    assert not list((tmp_path / 'temporary').glob('timm_sk_demo_*'))
    assert not list((tmp_path / 'cwd').iterdir())


def test_demo_options(monkeypatch):
    calls = []
    monkeypatch.setattr('timm_sk.demo.serve', lambda model, **options: calls.append((model, options)))
    for arguments in (
        [],
        ['--model', 'sknet_atto.digits', '--host', '0.0.0.0', '--port', '8000', '--allowed-host', 'a.b'],
    ):
        assert CliRunner().invoke(app, ['demo', *arguments]).exit_code == 0
    assert calls == [
        (DEFAULT_MODEL, dict(host='127.0.0.1', port=None, allowed_hosts=())),
        ('sknet_atto.digits', dict(host='0.0.0.0', port=8000, allowed_hosts=['a.b'])),
    ]


def test_demo_errors(monkeypatch):
    def error(*arguments):
        done = CliRunner().invoke(app, ['demo', *arguments])
        assert done.exit_code == 1
        assert len(done.output.splitlines()) == 1, done.output
        return done.output

    assert 'sknet_atto has no checkpoint "nothing"' in error('--model', 'sknet_atto.nothing')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in error('--port', str(port))
    monkeypatch.setattr('timm_sk.optional_packages.find_spec', lambda name: None)
    assert 'pip install "timm_sk[demo]"' in error()


def test_space_metadata():
    front = yaml.safe_load((ROOT / 'space' / 'README.md').read_text().split('---')[1])
    assert front['sdk'] == 'gradio'
    assert front['license'] == 'apache-2.0'
    assert (ROOT / 'space' / front['app_file']).is_file()
    extra = re.search(r'demo = \["gradio>=([\d.]+),<(\d+)"\]', (ROOT / 'pyproject.toml').read_text())
    least, below = extra.groups()
    version = [int(number) for number in front['sdk_version'].split('.')]
    assert [int(number) for number in least.split('.')] <= version < [int(below)]
    assert (ROOT / 'space' / 'requirements.txt').read_text() == 'timm_sk[demo]\n'
