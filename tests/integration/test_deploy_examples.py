"""The snippets of docs/deploy.md and the example of a web service, with the real engines and a real server."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from PIL import Image
from subprocesses import ROOT, free_port

import timm_sk
from timm_sk.data import shapes

pytestmark = pytest.mark.integration
openvino = pytest.importorskip('openvino')

DOCUMENT = (ROOT / 'docs' / 'deploy.md').read_text()
REQUESTS = 50


@pytest.fixture(scope='module')
def model():
    return timm.create_model('sknet_atto.shapes', pretrained=True).eval()


def snippet(language):
    (found,) = re.findall(rf'```{language}\n(.*?)```', DOCUMENT, re.DOTALL)
    return found


@pytest.mark.skipif(shutil.which('cmake') is None, reason='needs cmake and a C++ compiler')
@torch.no_grad()
def test_cpp_snippet(tmp_path, model):
    (tmp_path / 'classify.cpp').write_text(snippet('cpp'))
    (tmp_path / 'CMakeLists.txt').write_text(snippet('cmake'))
    timm_sk.export(model, tmp_path / 'net.xml')
    folder = f'-DOpenVINO_DIR={openvino.__path__[0]}/cmake'
    for command in (['cmake', '-B', 'build', folder], ['cmake', '--build', 'build']):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for value in ('-1', '0.2', '0.9'):
        done = subprocess.run(['build/classify', 'net.xml', value], cwd=tmp_path, capture_output=True, text=True)
        assert int(done.stdout) == model(torch.full((1, 3, 32, 32), float(value))).argmax().item(), done.stderr


@pytest.fixture(scope='module')
def address(model, tmp_path_factory):
    """The address of examples/serve.py, run by uvicorn."""
    pytest.importorskip('fastapi')
    path = timm_sk.export(model, tmp_path_factory.mktemp('served') / 'net.onnx', dynamic_size=True)
    port = free_port()
    command = [sys.executable, '-m', 'uvicorn', '--app-dir', str(ROOT / 'examples'), 'serve:app', '--port', str(port)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MODEL': str(path)}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', port)) == 0:
                    break
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}/predict'
    finally:
        server.kill()
        server.wait()


def ask(address, content):
    request = urllib.request.Request(address, content, {'Content-Type': 'application/octet-stream'})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@torch.no_grad()
def test_parallel_requests(address, model):
    pixels, _ = shapes.draw(REQUESTS, seed=4)
    contents = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, 'PNG')
        contents.append(file.getvalue())
    with ThreadPoolExecutor(REQUESTS) as threads:
        answers = list(threads.map(ask, [address] * REQUESTS, contents))
    expected = model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).softmax(1)
    for answer, probabilities in zip(answers, expected, strict=True):
        found = torch.tensor([answer[name] for name in answer])
        wanted = torch.stack([probabilities[shapes.CLASS_NAMES.index(name)] for name in answer])
        assert len(answer) == 3
        assert (found - wanted).abs().max() <= 1e-3
        assert max(answer, key=answer.get) == shapes.CLASS_NAMES[probabilities.argmax()]


def test_service_refuses_other_files(address):
    with pytest.raises(urllib.error.HTTPError, match='415'):
        ask(address, b'not an image')
