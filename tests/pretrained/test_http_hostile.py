"""Servers that lie, send nothing whole, or send so slowly that nobody would wait for the end."""

import itertools
import math
import re
import time

import pytest
from hub_server import Fault
from huggingface_hub import constants
from raw_server import raw_server
from small_net import assert_loaded, create

from timm_sk.checkpoints import Source
from timm_sk.errors import DownloadError
from timm_sk.pretrained.http_client import UnreachableError
from timm_sk.pretrained.http_download import download

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)
ENDLESS = 100_000  # parts that a server sends


def headers(status, *fields, length=None):
    lines = [f'HTTP/1.1 {status}', *fields, *([] if length is None else [f'Content-Length: {length}'])]
    return '\r\n'.join([*lines, 'Connection: close', '', '']).encode()


def slowly(content, step=1):
    for start in range(0, len(content), step):
        yield content[start : start + step]
        yield 0.02


def part(start, stop, *, shown=None, etag='"1"'):
    """A 206 answer; `shown` replaces the true Content-Range."""
    fields = f'Content-Range: {shown or f"bytes {start}-{stop - 1}/{SIZE}"}', f'ETag: {etag}'
    return [headers('206 Partial Content', *fields, length=stop - start), CONTENT[start:stop]]


def then(second):
    """A first answer that breaks off after 300 bytes, and the answers to requests for the rest."""
    whole = [headers('200 OK', 'ETag: "1"', length=SIZE), CONTENT[:300]]
    return lambda start: second(start) if start else whole


REDIRECT = '302 Found'
CHUNKED = headers('200 OK', 'Transfer-Encoding: chunked')
WRONG = {
    'a part that was not asked for': (lambda _: part(0, 100), 'does not send the file from byte 100 on, 4 times'),
    'a part without a range': (
        lambda _: [headers('206 Partial Content', length=5), b'12345'],
        'send the file from byte 0 on, 4 times',
    ),
    'a part of unknown size': (lambda _: part(0, 100, shown='bytes 0-99/*'), 'send the file from byte 0 on, 4 times'),
    'a part beyond the size': (lambda _: part(0, 100, shown='bytes 0-99/99'), 'send the file from byte 0 on, 4 times'),
    'a range of other digits': (
        lambda _: part(0, 100, shown='bytes \u00b2-99/102400'),
        'send the file from byte 0 on, 4 times',
    ),
    'a range that is longer than its part': (
        lambda _: part(0, 100, shown=f'bytes 0-{SIZE - 1}/{SIZE}'),
        'send the file from byte 0 on, 4 times',
    ),
    'a resume of ten bytes': (then(lambda start: part(start, start + 10)), 'ended after 330 of 102400 bytes, 4 times'),
    'a resume that says it is the rest': (
        then(lambda start: part(start, start + 10, shown=f'bytes {start}-{SIZE - 1}/{SIZE}')),
        'the file from byte 300 on|ended after 300',
    ),
    'a resume elsewhere': (then(lambda start: part(start + 1, SIZE)), 'the file from byte 300 on|ended after 300'),
    'a resume of another file': (then(lambda start: part(start, SIZE, etag='"2"')), 'has another file|ended after 300'),
    'nothing more of a file without ETag': (
        then(lambda start: [headers('416 Range Not Satisfiable', f'Content-Range: bytes */{start}', length=0)]),
        'does not have the rest|ended after 300',
    ),
    '204': (lambda _: [headers('204 No Content')], r'the server answers 204 No Content, without the file\.'),
    '201': (lambda _: [headers('201 Created', length=2), b'ok'], 'the server answers 201'),
    'no length': (lambda _: [headers('200 OK'), CONTENT], 'does not announce the size of the file'),
    'an invalid redirect': (lambda _: [headers(REDIRECT, 'Location: http://[bad/', length=0)], 'an invalid address'),
    'a redirect to nowhere': (lambda _: [headers(REDIRECT, length=0)], 'the server answers 302'),
    'a redirect to an invalid port': (
        lambda _: [headers(REDIRECT, 'Location: http://127.0.0.1:x/', length=0)],
        'does not answer .InvalidURL',
    ),
    'a redirect to itself': (lambda _: [headers(REDIRECT, 'Location: /file.pth', length=0)], 'the server answers 302'),
    'a date in year 1': (
        lambda _: [headers('503 Busy', 'Retry-After: Mon, 01 Jan 0001 00:00:00 -0000', length=0)],
        'the server answers 503 Busy, 4 times',
    ),
    'not HTTP': (lambda _: [b'\x80' * 100 + b'\r\n'], 'does not answer .BadStatusLine'),
    'a chunk of no size': (
        lambda _: [headers('200 OK', 'Transfer-Encoding: chunked'), b'x\r\n'],
        'the connection broke',
    ),
    'a chunked file that ends early': (lambda _: [CHUNKED, b'5\r\n12345\r\n'], 'the connection broke'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_answer(path, waits, name):
    answer, message = WRONG[name]
    with raw_server(answer) as url, pytest.raises(DownloadError, match=message):
        download(url, path)
    assert not path.exists()


def test_right_parts(path, waits):
    """A server may send less than what was asked for; the next attempt goes on."""
    with raw_server(then(lambda start: part(start, min(start + 60_000, SIZE)))) as url:
        download(url, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('step', [300, 5000])
def test_extent(path, waits, step):
    """A part of a file, whose answers may be short."""
    with raw_server(lambda start: part(start, min(start + step, 3000))) as url:
        if step == 300:
            with pytest.raises(UnreachableError, match='ended after 1200 of 2000 bytes, 4 times'):
                download(url, path, extent=(1000, 3000))
        download(url, path, extent=(1000, 3000))
    assert path.read_bytes() == CONTENT[1000:3000]


WRONG_EXTENTS = {
    'the whole file': (lambda _: [headers('200 OK', length=SIZE), CONTENT], 'does not send parts of a file'),
    'another part': (lambda _: part(0, 2000), 'does not send the file from byte 1000 on, 4 times'),
    'a longer part': (lambda start: part(start, 5000), 'sends more than 2000 bytes'),
    'the rest of another file': (
        lambda start: part(start, start + 1000, etag=f'"{start}"'),
        'has another file than before',
    ),
}


@pytest.mark.parametrize('name', WRONG_EXTENTS)
def test_wrong_extent(path, waits, name):
    answer, message = WRONG_EXTENTS[name]
    with raw_server(answer) as url, pytest.raises(DownloadError, match=message):
        download(url, path, extent=(1000, 3000))
    assert not path.exists()


SLOW = {
    'headers': lambda _: slowly(headers('200 OK', *(f'X-{number}: {number}' for number in range(90)), length=SIZE)),
    'continue': lambda _: slowly(b'HTTP/1.1 100 Continue\r\n\r\n' * 1000),
    'body': lambda _: itertools.chain([headers('200 OK', length=SIZE)], slowly(CONTENT)),
    'chunks': lambda _: itertools.chain([CHUNKED], slowly(b'0' * 60_000)),
    'trailers': lambda _: itertools.chain([CHUNKED, b'5\r\n12345\r\n0\r\n'], slowly(b'X: y\r\n' * 10_000)),
    'redirect': lambda _: itertools.chain([headers(REDIRECT, 'Location: /file.pth', length=SIZE)], slowly(CONTENT)),
    'refusal': lambda _: itertools.chain([headers('404 Not Found', length=SIZE)], slowly(CONTENT)),
}


@pytest.mark.parametrize('name', SLOW)
def test_slow_server(path, waits, monkeypatch, name):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.1)
    begin = time.monotonic()
    with raw_server(SLOW[name]) as url, pytest.raises(DownloadError) as caught:
        download(url, path)
    if name != 'refusal':
        assert isinstance(caught.value, UnreachableError)
        assert re.search('only [0-9]+ bytes in|timed out', str(caught.value))  # the latter on a busy machine
    assert time.monotonic() - begin < 8
    assert not path.exists()


def test_slow_but_honest_server(path, monkeypatch):
    """At 4 kB per second, through several windows of the rate."""
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.2)
    with raw_server(lambda _: [headers('200 OK', length=8000), *slowly(CONTENT[:8000], step=80)]) as url:
        begin = time.monotonic()
        download(url, path)
    assert time.monotonic() - begin > 3 * 0.6
    assert path.read_bytes() == CONTENT[:8000]


ENDLESS_ANSWERS = {
    'continue': lambda _: itertools.repeat(b'HTTP/1.1 100 Continue\r\nX: y\r\n\r\n' * 100, ENDLESS),
    'redirect': lambda _: itertools.chain(
        [headers(REDIRECT, 'Location: /file.pth')], itertools.repeat(bytes(10_000), ENDLESS)
    ),
    'trailers': lambda _: itertools.chain(
        [CHUNKED, b'5\r\n12345\r\n0\r\n'], itertools.repeat(b'X: y\r\n' * 1000, ENDLESS)
    ),
}


@pytest.mark.parametrize('name', ENDLESS_ANSWERS)
def test_endless_answer(path, waits, monkeypatch, name):
    monkeypatch.setattr('timm_sk.pretrained.http_download.MAX_BYTES', 1_000_000)
    with raw_server(ENDLESS_ANSWERS[name]) as url, pytest.raises(UnreachableError, match='headers without an end'):
        download(url, path)


@pytest.mark.parametrize('name', ['a part that was not asked for', '204', 'an invalid redirect', 'no length'])
def test_next_source_after_a_wrong_answer(online, row, release, weights, waits, name):
    with raw_server(WRONG[name][0]) as url:
        row(Source(kind='url', location=url), release()[1])
        assert_loaded(create(), weights)


@pytest.mark.parametrize('planted', ['file.pth.partial', 'file.pth.partial.etag', 'file.pth'])
@pytest.mark.parametrize('resume', [False, True])
def test_planted_links(hub, path, tmp_path, planted, resume):
    """A link in place of a file that the download writes is replaced, not followed."""
    hub.files['file.pth'] = CONTENT
    hub.faults.append(Fault(request='GET', times=math.inf, headers={'ETag': '"1"'}))
    victim = tmp_path / 'victim'
    victim.write_bytes(CONTENT[:300])
    path.parent.mkdir()
    (path.parent / planted).symlink_to(victim)
    download(f'{hub.endpoint}/files/file.pth', path, resume=resume)
    assert (path.read_bytes(), path.is_symlink()) == (CONTENT, False)
    assert victim.read_bytes() == CONTENT[:300]
