"""Downloading a release's file.

With the standard library: the HTTP client that huggingface_hub brings is another one in each of its major versions.
"""

import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import DownloadError

ATTEMPTS = 4
MOST_BYTES = 4 << 30  # ten times the largest of these nets
_MOST_WAIT = 60.0  # seconds
_CHUNK_BYTES = 1 << 18
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet


Progress = Callable[[int, int | None], None]


class _Passing(Exception):  # noqa: N818  (never leaves this module: another attempt follows)
    """Why an attempt failed that may succeed if repeated, and the seconds after which the server asks for it."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Part(NamedTuple):
    """What is already there of a file."""

    path: Path
    validator: str | None  # the file's ETag at the server

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and from http to http, but not to what anyone on the way may change."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        followed = ('https:',) if req.full_url.startswith('https:') else ('https:', 'http:')
        if not newurl.startswith(followed):
            raise DownloadError(f'the server leads to {newurl}, which is not followed.')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    resume: bool = False,
    timeout: float = 10.0,
    progress: Progress | None = None,
) -> None:
    """Download a file; it is there under its name when it is there in full, and on the disk.

    An interrupted download goes on where it stopped, in this call or a later one, if the server gave the file an ETag
    and still has the same one, or if `resume` says that the caller will see a file patched together of two.

    Args:
        url: The file.
        path: Where to; the folder is made.
        size: Bytes of the file, where known.
        resume: Go on also where the server gives no ETag; for files whose hash is checked afterwards.
        timeout: Seconds without an answer or another byte, after which an attempt has failed.
        progress: Called with the bytes that are there and, where known, those of the whole file.

    Raises:
        DownloadError: If the server refuses, is not reached, or sends another length than announced or known.
        OSError: If the file cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, partial, size=size, resume=resume, timeout=timeout, progress=progress)
        except _Passing as failure:
            if attempt == ATTEMPTS:
                raise DownloadError(f'{failure}, {ATTEMPTS} times.') from failure
            wait = 2.0 ** (attempt - 1) if failure.wait is None else failure.wait
            if wait > _MOST_WAIT:
                raise DownloadError(f'{failure}; the server asks to wait for {wait:.0f} seconds.') from failure
            time.sleep(wait)
        else:
            break
    partial.replace(path)
    _tag_path(partial).unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a downloaded file, and what is there of it."""
    path.unlink(missing_ok=True)
    _discard_partial(path.with_name(f'{path.name}.partial'))


def _discard_partial(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag_path(partial).unlink(missing_ok=True)


def _attempt(
    url: str, partial: Path, *, size: int | None, resume: bool, timeout: float, progress: Progress | None
) -> None:
    part = _Part(partial, _read_tag(partial))
    start = part.size if resume or part.validator else 0
    request = urllib.request.Request(url, headers={'User-Agent': 'timm_sk', 'Accept-Encoding': 'identity'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        if part.validator:
            request.add_header('If-Range', part.validator)
    try:
        with urllib.request.build_opener(SafeRedirects).open(request, timeout=timeout) as response:
            if response.status == 206:
                _require_continuation(response, partial, start=start, validator=part.validator)
            else:
                start = 0
                partial.unlink(missing_ok=True)  # before its new tag is written
            total = _total(response, start, size)
            _write_tag(partial, response.headers.get('ETag'))
            _receive(response, partial, start=start, total=total, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows what is there, which is whole if the server's file is as long
            if start and (error.headers.get('Content-Range') or '').endswith(f'/{start}') and size in (None, start):
                return
            _discard_partial(partial)
            raise _Passing('the server does not have the rest of the file') from error
        if error.code not in _PASSING:
            raise DownloadError(f'the server answers {error.code} {error.reason}.') from error
        raise _Passing(f'the server answers {error.code} {error.reason}', _retry_after(error.headers)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            raise DownloadError(f'the server is not found ({error.reason}).') from error
        raise _Passing(f'the server is not reached ({error.reason})') from error
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:  # before the answer's headers ended
        raise _Passing(f'the server does not answer ({type(error).__name__}: {error})') from error


def _require_continuation(
    response: http.client.HTTPResponse, partial: Path, *, start: int, validator: str | None
) -> None:
    """Check that a part of a file follows what is there; a server may know no `If-Range`."""
    follows = (response.headers.get('Content-Range') or '').startswith(f'bytes {start}-')
    if not follows or (validator and response.headers.get('ETag') != validator):
        _discard_partial(partial)
        raise _Passing('the server has another file than before')


def _total(response: http.client.HTTPResponse, start: int, size: int | None) -> int | None:
    """Bytes that the file will have, by what the server says; None if it says nothing."""
    length = response.headers.get('Content-Length')
    total = start + int(length) if length and _is_number(length) else None
    if size is not None and total not in (None, size):
        raise DownloadError(f'the server offers {total} bytes, the published file has {size}.')
    if (total or 0) > MOST_BYTES:
        raise DownloadError(f'the server offers {total} bytes, no more than {MOST_BYTES} are fetched.')
    return size if total is None else total


def _receive(
    response: http.client.HTTPResponse, partial: Path, *, start: int, total: int | None, progress: Progress | None
) -> None:
    limit = MOST_BYTES if total is None else total
    received = start
    try:
        with partial.open('r+b' if start else 'wb') as file:
            file.seek(start)
            while chunk := _read(response):
                received += len(chunk)
                if received > limit:
                    raise DownloadError(f'the server sends more than {limit} bytes.')
                file.write(chunk)
                if progress:
                    progress(received, total)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, DownloadError):
        _discard_partial(partial)
        raise
    if total is not None and received < total:
        raise _Passing(f'the connection ended after {received} of {total} bytes')


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end, or where the connection was closed before it."""
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f'the connection broke ({type(error).__name__}: {error})') from error


def _is_number(text: str) -> bool:
    # other scripts have digits too, and `int` refuses both these and thousands of digits
    return text.isascii() and text.isdigit() and len(text) < 20


def _retry_after(headers: Message) -> float | None:
    """Seconds that a server asks to wait, which it says as a number or as a date."""
    value = (headers.get('Retry-After') or '').strip()
    if _is_number(value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _tag_path(partial: Path) -> Path:
    return partial.with_name(f'{partial.name}.json')


def _read_tag(partial: Path) -> str | None:
    try:
        return json.loads(_tag_path(partial).read_text())['etag']
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_tag(partial: Path, etag: str | None) -> None:
    if etag and not etag.startswith('W/'):  # a weak one does not promise the same bytes
        _tag_path(partial).write_text(json.dumps(dict(etag=etag)))
    else:
        _tag_path(partial).unlink(missing_ok=True)
