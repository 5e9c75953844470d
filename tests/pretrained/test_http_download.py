"""A release's file arrives whole or not at all, whatever the connection does."""

import email.utils
import math
import socket
import threading
import time
import urllib.request

import pytest
from hub_server import Fault

from timm_sk.errors import DownloadError
from timm_sk.pretrained import http_download
from timm_sk.pretrained.http_download import SafeRedirects, download

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def url(hub):
    hub.files['file.pth'] = CONTENT
    return f'{hub.endpoint}/files/file.pth'


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'downloads' / 'file.pth'


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_a_file_arrives(url, path):
    download(url, path, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path) == ['file.pth']


@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_met_with_patience(hub, url, path, waits, status):
    hub.faults.append(fault := Fault(request='GET', times=2, status=status))
    download(url, path)
    assert (path.read_bytes(), fault.hits, waits) == (CONTENT, 2, [1, 2])


@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_a_lasting_refusal_is_not_repeated(hub, url, path, waits, status):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, status=status))
    with pytest.raises(DownloadError, match=f'the server answers {status}'):
        download(url, path)
    assert (fault.hits, waits, names(path)) == (1, [], [])


def test_patience_ends(hub, url, path, waits):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, status=500))
    with pytest.raises(DownloadError, match=r'the server answers 500 .*, 4 times\.'):
        download(url, path)
    assert (fault.hits, waits) == (4, [1, 2, 4])


@pytest.mark.parametrize('dated', [False, True])
def test_retry_after_is_honoured(hub, url, path, waits, dated):
    value = email.utils.formatdate(time.time() + 31, usegmt=True) if dated else '30'
    hub.faults.append(Fault(request='GET', status=429, headers={'Retry-After': value}))
    download(url, path)
    assert waits == [pytest.approx(30, abs=1.5)]


def test_a_long_retry_after_is_told_instead(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', status=429, headers={'Retry-After': '3600'}))
    with pytest.raises(DownloadError, match=r'429.*asks to wait for 3600 seconds'):
        download(url, path)
    assert waits == []


def test_a_cut_connection_is_resumed_where_the_hash_is_checked(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', cut=300_000, times=2))
    ranges = watch_ranges(hub)
    download(url, path, resume=True)
    assert path.read_bytes() == CONTENT
    assert ranges == [None, 'bytes=300000-', 'bytes=600000-']


def test_a_cut_connection_is_resumed_where_the_server_names_the_version(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', cut=300_000, headers={'ETag': '"version 1"'}))
    hub.faults.append(Fault(request='GET', headers={'ETag': '"version 1"'}))
    ranges = watch_ranges(hub)
    download(url, path)
    assert path.read_bytes() == CONTENT
    assert ranges == [None, 'bytes=300000-']
    assert names(path) == ['file.pth']


@pytest.mark.parametrize('headers', [{}, {'ETag': 'W/"weak"'}])
def test_without_hash_and_version_it_starts_anew(hub, url, path, waits, headers):
    hub.faults.append(Fault(request='GET', cut=300_000, headers=headers))
    ranges = watch_ranges(hub)
    download(url, path)
    assert (path.read_bytes(), ranges) == (CONTENT, [None, None])


def test_a_later_call_goes_on(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', cut=100_000, times=4))
    with pytest.raises(DownloadError, match=r'the connection ended after 400000 of 1024000 bytes, 4 times'):
        download(url, path, resume=True)
    assert names(path) == ['file.pth.partial']
    ranges = watch_ranges(hub)
    download(url, path, resume=True)
    assert (path.read_bytes(), ranges, names(path)) == (CONTENT, ['bytes=400000-'], ['file.pth'])


def test_a_part_longer_than_the_file_is_discarded(hub, url, path, waits):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(CONTENT + b'more')
    download(url, path, resume=True)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('headers', [{'ETag': '"version 2"'}, {'Content-Range': 'bytes 0-1023999/1024000'}, {}])
def test_a_part_of_another_file_is_not_appended(hub, url, path, waits, headers):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(bytes(300_000))
    path.with_name('file.pth.partial.json').write_text('{"etag": "\\"version 1\\""}')
    hub.faults.append(fault := Fault(request='GET', headers=headers))
    download(url, path)
    assert (path.read_bytes(), fault.hits) == (CONTENT, 1)
    assert names(path) == ['file.pth']


def test_a_new_version_is_not_noted_beside_an_old_part(hub, url, path, monkeypatch):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(bytes(300_000))
    hub.faults.append(Fault(request='GET', headers={'ETag': '"version 2"'}))

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(http_download, '_receive', interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(url, path)
    assert names(path) == ['file.pth.partial.json']


def test_a_whole_part_needs_nothing_more(hub, url, path, waits):
    path.parent.mkdir()
    path.with_name('file.pth.partial').write_bytes(CONTENT)
    download(url, path, resume=True)
    assert (path.read_bytes(), waits) == (CONTENT, [])


@pytest.mark.parametrize('length', [len(CONTENT) + 7, len(CONTENT) - 7])
def test_another_length_than_the_published_one_is_refused(hub, url, path, waits, length):
    hub.faults.append(Fault(request='GET', times=math.inf, length=length))
    with pytest.raises(DownloadError, match=f'the server offers {length} bytes, the published file has {len(CONTENT)}'):
        download(url, path, size=len(CONTENT))
    assert names(path) == []


def test_a_length_that_is_not_reached_is_a_cut_connection(hub, url, path, waits):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, length=len(CONTENT) + 7))
    with pytest.raises(DownloadError, match=f'ended after {len(CONTENT)} of {len(CONTENT) + 7} bytes, 4 times'):
        download(url, path)
    assert fault.hits == 4


def test_nothing_larger_than_any_of_these_nets_is_fetched(hub, url, path, monkeypatch):
    monkeypatch.setattr(http_download, 'MAX_BYTES', 1_000_000)
    with pytest.raises(DownloadError, match='offers 1024000 bytes, the limit is 1000000'):
        download(url, path)
    assert names(path) == []


def test_a_server_that_announces_nothing_cannot_fill_the_disk(path, monkeypatch, waits):
    monkeypatch.setattr(http_download, 'MAX_BYTES', 1_000_000)
    with socket.create_server(('127.0.0.1', 0)) as server:
        answer_endlessly(server)
        with pytest.raises(DownloadError, match='sends more than 1000000 bytes'):
            download(f'http://127.0.0.1:{server.getsockname()[1]}/file', path)
    assert names(path) == []


def test_a_silent_server_is_left_after_the_timeout(hub, url, path, waits):
    hub.faults.append(fault := Fault(request='GET', times=math.inf, delay=math.inf))
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r'the server .*(timed out|TimeoutError).*, 4 times'):
        download(url, path, timeout=0.1)
    assert fault.hits == 4
    assert time.monotonic() - start < 3


def test_a_server_that_falls_silent_in_the_body_is_left_too(hub, url, path, waits):
    hub.faults.append(Fault(request='GET', times=math.inf, rate=1))
    with pytest.raises(DownloadError, match='the connection broke'):
        download(url, path, timeout=0.1)


def test_no_server(path, waits):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DownloadError, match=r'the server cannot be reached \(.*refused\), 4 times'):
        download(f'http://127.0.0.1:{port}/file', path)
    assert waits == [1, 2, 4]


def test_no_such_host(path, waits, monkeypatch):
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


def answer_endlessly(server):
    """Answer one request with a body that has no announced length and does not end by itself."""

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n')
            try:
                while True:
                    connection.sendall(bytes(100_000))
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.parametrize('header', ['Content-Length', 'Retry-After'])
@pytest.mark.parametrize('value', ['\u00b2', '9' * 5000], ids=['of another script', 'thousands'])
def test_digits_that_are_no_number(hub, tmp_path, waits, header, value):
    hub.files['net.pth'] = b'weights'
    status = 503 if header == 'Retry-After' else None
    hub.faults = [Fault(request='/files/', status=status, headers={header: value})]
    try:
        download(f'{hub.endpoint}/files/net.pth', tmp_path / 'net.pth')
    except DownloadError:
        return
    assert (tmp_path / 'net.pth').read_bytes() == b'weights'


@pytest.mark.parametrize('target', ['http://example.org/net.pth', 'file:///etc/passwd', 'ftp://example.org/net.pth'])
def test_a_redirect_away_from_https_is_refused(target):
    request = urllib.request.Request('https://example.org/net.pth')
    with pytest.raises(DownloadError, match='redirects to'):
        SafeRedirects().redirect_request(request, None, 302, 'Found', {}, target)
    plain = urllib.request.Request('http://example.org/net.pth')
    with pytest.raises(DownloadError, match='redirects to ftp'):
        SafeRedirects().redirect_request(plain, None, 302, 'Found', {}, 'ftp://example.org/net.pth')
    followed = SafeRedirects().redirect_request(request, None, 302, 'Found', {}, 'https://example.org/other.pth')
    assert followed.full_url == 'https://example.org/other.pth'
