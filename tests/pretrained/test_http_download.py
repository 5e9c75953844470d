"""Downloads by HTTP: retries, resuming, limits."""

import email.utils
import math
import socket
import time
import urllib.request

import pytest
from hub_server import Fault
from huggingface_hub import constants
from raw_server import raw_server

from timm_sk.errors import DownloadError
from timm_sk.pretrained import http_download
from timm_sk.pretrained.http_client import SafeRedirects
from timm_sk.pretrained.http_download import download

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def url(hub):
    hub.files['file.pth'] = CONTENT
    return f'{hub.endpoint}/files/file.pth'


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_download(url, path):
    download(url, path, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path) == ['file.pth']


@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504])
def test_retry_on_transient_status(hub, url, path, waits, status):
    hub.faults.append(fault := Fault(request='GET', times=2, status=status))
    download(url, path)
    assert (path.read_bytes(), fault.hits, waits) == (CONTENT, 2, [1, 2])


@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_no_retry_on_permanent_status(hub, url, path, waits, status):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, status=status))
    with pytest.raises(DownloadError, match=f'the server answers {status}'):
        download(url, path)
    assert (fault.hits, waits, names(path)) == (1, [], [])


def test_number_of_attempts(hub, url, path, waits):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, status=500))
    with pytest.raises(DownloadError, match=r'the server answers 500 .*, 4 times\.'):
        download(url, path)
    assert (fault.hits, waits) == (4, [1, 2, 4])


@pytest.mark.parametrize('dated', [False, True])
def test_retry_after(hub, url, path, waits, dated):
    value = email.utils.formatdate(time.time() + 31, usegmt=True) if dated else '30'
    hub.faults.append(Fault(request='GET', status=429, headers={'Retry-After': value}))
    download(url, path)
    assert waits == [pytest.approx(30, abs=1.5)]


def test_long_retry_after(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', status=429, headers={'Retry-After': '3600'}))
    with pytest.raises(DownloadError, match=r'429.*asks to wait for 3600 seconds'):
        download(url, path)
    assert waits == []


@pytest.mark.parametrize(
    ('headers', 'resume', 'second'),
    [
        ({}, True, 'bytes=300000-'),
        ({'ETag': '"version 1"'}, False, 'bytes=300000-'),
        ({}, False, None),
        ({'ETag': 'W/"weak"'}, False, None),
    ],
    ids=['hash', 'ETag', 'neither', 'weak ETag'],
)
def test_resume_after_cut_connection(hub, url, path, waits, headers, resume, second):
    hub.faults += [Fault(request='GET', cut=300_000, headers=headers), Fault(request='GET', headers=headers)]
    ranges = watch_ranges(hub)
    download(url, path, resume=resume)
    assert (path.read_bytes(), ranges) == (CONTENT, [None, second])
    assert names(path) == ['file.pth']


def test_resume_in_a_later_call(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', cut=100_000, times=4))
    with pytest.raises(DownloadError, match=r'the connection ended after 400000 of 1024000 bytes, 4 times'):
        download(url, path, resume=True)
    assert names(path) == ['file.pth.partial']
    ranges = watch_ranges(hub)
    download(url, path, resume=True)
    assert (path.read_bytes(), ranges, names(path)) == (CONTENT, ['bytes=400000-'], ['file.pth'])


@pytest.mark.parametrize('part', [CONTENT, CONTENT + b'more'], ids=['complete', 'too long'])
def test_resume_of_a_part_as_long_as_the_file(hub, url, path, waits, part):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(part)
    download(url, path, resume=True)
    assert (path.read_bytes(), names(path)) == (CONTENT, ['file.pth'])
    assert waits == ([] if part == CONTENT else [1])


@pytest.mark.parametrize('headers', [{'ETag': '"version 2"'}, {'Content-Range': 'bytes 0-1023999/1024000'}, {}])
def test_no_resume_of_another_version(hub, url, path, waits, headers):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(bytes(300_000))
    path.with_name('file.pth.partial.etag').write_text('"version 1"')
    hub.faults.append(fault := Fault(request='GET', headers=headers))
    download(url, path)
    assert (path.read_bytes(), fault.hits) == (CONTENT, 1)
    assert names(path) == ['file.pth']


def test_new_etag_is_not_stored_with_an_old_part(hub, url, path, monkeypatch):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(bytes(300_000))
    hub.faults.append(Fault(request='GET', headers={'ETag': '"version 2"'}))

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(http_download, '_receive', interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(url, path)
    assert names(path) == ['file.pth.partial.etag']


@pytest.mark.parametrize('length', [len(CONTENT) + 7, len(CONTENT) - 7])
def test_size_differs_from_the_published_one(hub, url, path, waits, length):
    hub.faults.append(Fault(request='GET', times=math.inf, length=length))
    with pytest.raises(DownloadError, match=f'the server offers {length} bytes, the published file has {len(CONTENT)}'):
        download(url, path, size=len(CONTENT))
    assert names(path) == []


def test_announced_size_is_not_reached(hub, url, path, waits):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, length=len(CONTENT) + 7))
    with pytest.raises(DownloadError, match=f'ended after {len(CONTENT)} of {len(CONTENT) + 7} bytes, 4 times'):
        download(url, path)
    assert fault.hits == 4


def test_size_limit(hub, url, path, monkeypatch):
    monkeypatch.setattr(http_download, 'MAX_BYTES', 1_000_000)
    with pytest.raises(DownloadError, match='offers 1024000 bytes, the limit is 1000000'):
        download(url, path)
    answer = [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', *[b'ffff\r\n' + bytes(0xFFFF) + b'\r\n'] * 20]
    with raw_server(lambda _: answer) as url, pytest.raises(DownloadError, match='sends more than 1000000 bytes'):
        download(url, path)
    assert names(path) == []


def test_timeout_before_the_answer(hub, url, path, waits, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.1)
    hub.faults.append(fault := Fault(request='GET', times=math.inf, delay=math.inf))
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r'the server .*(timed out|TimeoutError).*, 4 times'):
        download(url, path)
    assert fault.hits == 4
    assert time.monotonic() - start < 3


def test_timeout_in_the_body(hub, url, path, waits, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.1)
    hub.faults.append(Fault(request='GET', times=math.inf, rate=1))
    with pytest.raises(DownloadError, match='the connection broke'):
        download(url, path)


def test_connection_refused(path, waits):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DownloadError, match=r'the server cannot be reached \(.*refused\), 4 times'):
        download(f'http://127.0.0.1:{port}/file', path)
    assert waits == [1, 2, 4]


def test_unknown_host(path, waits, monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    with pytest.raises(DownloadError, match=r'the server is not found \(.*Name or service not known\)'):
        download('http://nowhere.invalid/file', path)
    assert waits == []


def watch_ranges(hub):
    """A list that fills with the `Range` of each request."""
    ranges = []
    handler = hub.server.RequestHandlerClass
    parse = handler.parse_request

    def watch(self):
        parsed = parse(self)
        ranges.append(self.headers.get('Range'))
        return parsed

    handler.parse_request = watch
    return ranges


@pytest.mark.parametrize('header', ['Content-Length', 'Retry-After'])
@pytest.mark.parametrize('value', ['\u00b2', '9' * 5000], ids=['of another script', 'thousands'])
def test_invalid_numbers_in_headers(hub, tmp_path, waits, header, value):
    hub.files['net.pth'] = b'weights'
    status = 503 if header == 'Retry-After' else None
    hub.faults = [Fault(request='/files/', status=status, headers={header: value})]
    try:
        download(f'{hub.endpoint}/files/net.pth', tmp_path / 'net.pth')
    except DownloadError:
        return
    assert (tmp_path / 'net.pth').read_bytes() == b'weights'


@pytest.mark.parametrize('target', ['http://example.org/net.pth', 'file:///etc/passwd', 'ftp://example.org/net.pth'])
def test_insecure_redirect(target):
    request = urllib.request.Request('https://example.org/net.pth')
    with pytest.raises(DownloadError, match='redirects to'):
        SafeRedirects().redirect_request(request, None, 302, 'Found', {}, target)
    plain = urllib.request.Request('http://example.org/net.pth')
    with pytest.raises(DownloadError, match='redirects to ftp'):
        SafeRedirects().redirect_request(plain, None, 302, 'Found', {}, 'ftp://example.org/net.pth')
    followed = SafeRedirects().redirect_request(request, None, 302, 'Found', {}, 'https://example.org/other.pth')
    assert followed.full_url == 'https://example.org/other.pth'
