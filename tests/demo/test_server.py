"""The served page over HTTP: valid, hostile and parallel requests."""

import json
import os
import re
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from demo.sample_images import RING, SEVEN
from PIL import Image

from timm_sk.errors import UnobtainableCheckpointError

pytest.importorskip('gradio')
import httpx
from gradio_client import Client, handle_file

from timm_sk.demo.server import MAX_BODY_BYTES
from timm_sk.demo.uploads import MAX_BYTES

pytestmark = pytest.mark.deep

SHAPES = 'sknet_atto.shapes'


@pytest.fixture(scope='module')
def client(address):
    return Client(address, verbose=False)


def analyse(client, path, checkpoint=SHAPES, scale=1.0):
    return client.predict(handle_file(str(path)), checkpoint, scale, api_name='/analyse')


def upload(address, name, content):
    return httpx.post(f'{address}/gradio_api/upload', files={'files': (name, content)}, timeout=60)


def events(address, **data):
    """The events of a request with an image as gradio's client would not send it."""
    data = dict(data, meta={'_type': 'gradio.FileData'})
    job = httpx.post(f'{address}/gradio_api/call/analyse', json=dict(data=[data, SHAPES, 1]))
    return httpx.get(f'{address}/gradio_api/call/analyse/{job.json()["event_id"]}', timeout=30).text


def uploads():
    folder = Path(os.environ['GRADIO_TEMP_DIR'])
    return {path for path in folder.rglob('*') if path.is_file()}


def test_binds_to_loopback(address):
    port = urlsplit(address).port
    assert address == f'http://127.0.0.1:{port}'
    with socket.create_connection(('127.0.0.1', port), timeout=5):
        pass
    with pytest.raises(ConnectionRefusedError):  # a server for all addresses would answer here too
        socket.create_connection(('127.0.0.2', port), timeout=5)


def test_page_and_answers(address, client):
    page = httpx.get(address)
    assert page.status_code == 200
    assert 'Selective kernels' in page.text
    assert not json.loads(httpx.get(f'{address}/config').text)['analytics_enabled']
    assert 'ring' in analyse(client, RING)
    assert 'seen at 1.5×' in analyse(client, RING, scale=1.5)
    shapes, digits = client.predict(handle_file(str(SEVEN)), SHAPES, 'sknet_atto.digits', 1, api_name='/compare')
    assert '>7</th>' in digits
    assert '>7</th>' not in shapes


def test_share_metadata(address):
    page = httpx.get(address).text
    shared = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)">', page))
    assert shared['title'] == 'Selective kernels'
    assert 'kernels' in shared['description']
    assert shared['image'] == f'{address}/share.png'
    assert len(re.findall('og:|twitter:', page)) == 6  # none of gradio's are left
    image = httpx.get(shared['image'])
    assert image.headers['content-type'] == 'image/png'
    with Image.open(BytesIO(image.content)) as opened:
        assert opened.size == (1200, 630)


def test_upload_limit(address):
    before, temporary = uploads(), set(Path(tempfile.gettempdir()).glob('tmp*'))
    assert upload(address, 'large.png', bytes(MAX_BYTES + 1)).status_code == 413
    assert upload(address, 'larger.png', bytes(MAX_BODY_BYTES)).status_code == 413
    assert upload(address, 'small.png', RING.read_bytes()).status_code == 200
    assert len(uploads() - before) == 1
    assert not {path for path in set(Path(tempfile.gettempdir()).glob('tmp*')) - temporary if path.is_file()}


def test_body_limit(address):
    url = f'{address}/gradio_api/queue/join'
    assert httpx.post(url, content=b' ' * (MAX_BODY_BYTES + 1)).status_code == 413
    pieces = (b' ' * 1_000_000 for _ in range(MAX_BODY_BYTES // 1_000_000 + 2))
    with suppress(httpx.WriteError, httpx.RemoteProtocolError):  # it may hang up
        assert httpx.post(url, content=pieces).status_code in (400, 413)  # a body without an announced length
    assert httpx.get(address).status_code == 200


@pytest.mark.parametrize('name', ['../../evil.png', '/var/evil.png', '..\\..\\evil.png', 'a' * 300 + '.png'])
def test_upload_names_with_paths(address, name):
    before = uploads()
    response = upload(address, name, RING.read_bytes() + name.encode())
    assert response.status_code == 200
    (path,) = map(Path, response.json())
    folder = Path(os.environ['GRADIO_TEMP_DIR']).resolve()
    assert path.resolve().parent.parent == folder
    assert '..' not in path.parts
    assert uploads() - before == {path}


def test_upload_named_as_folder(address):
    assert upload(address, '..', RING.read_bytes()).status_code == 400


def test_other_files_are_not_served(address, client):
    for path in ('/etc/passwd', str(Path(__file__).resolve()), f'{os.environ["GRADIO_TEMP_DIR"]}/../x'):
        assert httpx.get(f'{address}/gradio_api/file={path}').status_code in (403, 404)
    assert 'event: error' in events(address, path='/etc/passwd')
    assert 'ring' in analyse(client, RING)


@pytest.mark.parametrize('name', ['local-dir:/etc', 'hf-hub:someone/something', 'resnet50', ''])
def test_only_offered_models_are_loaded(client, name):
    with pytest.raises(Exception, match='not in the list of choices'):
        analyse(client, RING, name)
    assert 'ring' in analyse(client, RING)


def test_data_uri_is_not_accepted(address):
    answer = events(address, url='data:image/png;base64,AAAA')
    assert 'Upload an image' in answer or 'event: error' in answer


def test_address_is_not_downloaded(address, client, monkeypatch):
    requested = []

    async def download(url, *arguments, **kwargs):
        requested.append(url)
        return str(RING)

    monkeypatch.setattr('gradio.processing_utils.async_ssrf_protected_download', download)
    assert 'event: error' in events(address, path='http://192.0.2.1/x.png')
    assert requested == []
    assert 'ring' in analyse(client, RING)


@pytest.fixture
def loaded(monkeypatch):
    """An event that loading another model waits for, and then fails."""
    event = threading.Event()

    def slow(name):
        event.wait(60)
        raise UnobtainableCheckpointError(name)

    monkeypatch.setattr('timm_sk.demo.model_cache.load', slow)
    return event


def test_loading_one_model_does_not_block_others(client, loaded):
    sent = handle_file(str(RING))
    waiting = [client.submit(sent, 'skresnet18.ra_in1k', 1, api_name='/analyse') for _ in range(6)]
    try:
        assert 'ring' in analyse(client, RING)
        assert not any(job.done() for job in waiting)
    finally:
        loaded.set()
    assert all('they are not on this server' in job.result(timeout=30) for job in waiting)


def test_one_visitor_does_not_block_others(address, client, loaded):
    path = upload(address, 'ring.png', RING.read_bytes()).json()[0]
    image = dict(path=path, meta={'_type': 'gradio.FileData'})
    body, url = dict(data=[image, 'skresnet18.ra_in1k', 1]), f'{address}/gradio_api/call/analyse'
    with httpx.Client(transport=httpx.HTTPTransport(local_address='127.0.0.2'), timeout=60) as other:
        jobs = [other.post(url, json=body).json()['event_id'] for _ in range(300)]
        try:
            assert 'ring' in analyse(client, RING)
            assert 'Too many requests at a time' in other.get(f'{url}/{jobs[-1]}').text
        finally:
            loaded.set()
        assert 'they are not on this server' in other.get(f'{url}/{jobs[0]}').text


def test_fifty_parallel_requests(client):
    sent = handle_file(str(RING))
    scales = [1 + index / 25 for index in range(50)]

    def ask(scale):
        return client.submit(sent, SHAPES, scale, api_name='/analyse').result(timeout=60)

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(ask, scales))
    assert all(f'seen at {scale:g}×' in html and 'SK_5_1' in html for scale, html in zip(scales, found, strict=True))
