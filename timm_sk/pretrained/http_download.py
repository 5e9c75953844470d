"""Download a file of a release by HTTP, with retries, and resume what was interrupted.

Uses the standard library: huggingface_hub brings another HTTP client in each of its major versions.
"""

import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ..errors import DownloadError

ATTEMPTS = 4
MAX_BYTES = 4 << 30  # ten times the largest of these nets
_MAX_WAIT = 60.0  # seconds
_CHUNK_BYTES = 1 << 18
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP status

Progress = Callable[[int, int | None], None]


class TransientError(Exception):
    """Raised when an attempt failed and another one may succeed.

    Attributes:
        wait: Seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and from http to http, but not from https to an insecure protocol."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        followed = ('https:',) if req.full_url.startswith('https:') else ('https:', 'http:')
        if not newurl.startswith(followed):
            raise DownloadError(f'the server redirects to {newurl}, which is not secure.')
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
    """Download a file atomically.

    An interrupted download is resumed, in this call or a later one, if the server gave the file an ETag and still has
    the same one, or if `resume` is set.

    Args:
        url: URL of the file.
        path: Path to write; its folder is created.
        size: Size of the file in bytes, if known.
        resume: Resume even if the server gives no ETag; for files whose hash the caller checks.
        timeout: Seconds without an answer or another byte after which an attempt has failed.
        progress: Called with the bytes received so far and, if known, those of the whole file.

    Raises:
        DownloadError: If the server refuses, cannot be reached, or sends another size than announced or known.
        OSError: If the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _PartialFile(path)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, partial, size=size, resume=resume, timeout=timeout, progress=progress)
            break
        except TransientError as failure:
            if attempt == ATTEMPTS:
                raise DownloadError(f'{failure}, {ATTEMPTS} times.') from failure
            wait = 2.0 ** (attempt - 1) if failure.wait is None else failure.wait
            if wait > _MAX_WAIT:
                raise DownloadError(f'{failure}; the server asks to wait for {wait:.0f} seconds.') from failure
            time.sleep(wait)
    partial.path.replace(path)
    partial.discard()


def discard(path: Path) -> None:
    """Remove a downloaded file, or the part of it that was downloaded."""
    path.unlink(missing_ok=True)
    _PartialFile(path).discard()


class _PartialFile:
    """The part of a file that was downloaded so far, and the file's ETag."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f'{path.name}.partial')
        self._etag_path = path.with_name(f'{path.name}.partial.etag')

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def etag(self) -> str:
        """Empty if the server gave none; a weak one (W/…) is not kept, as it does not promise the same bytes."""
        return self._etag_path.read_text('latin-1').strip() if self._etag_path.exists() else ''

    @etag.setter
    def etag(self, etag: str | None) -> None:
        self._etag_path.unlink(missing_ok=True)
        if etag and not etag.startswith('W/'):
            self._etag_path.write_text(etag, 'latin-1')

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._etag_path.unlink(missing_ok=True)


def _attempt(
    url: str, partial: _PartialFile, *, size: int | None, resume: bool, timeout: float, progress: Progress | None
) -> None:
    etag = partial.etag
    start = partial.size if resume or etag else 0
    request = urllib.request.Request(url, headers={'User-Agent': 'timm_sk', 'Accept-Encoding': 'identity'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        if etag:
            request.add_header('If-Range', etag)
    try:
        with urllib.request.build_opener(SafeRedirects).open(request, timeout=timeout) as response:
            if response.status == 206:
                continues = (response.headers.get('Content-Range') or '').startswith(f'bytes {start}-')
                if not continues or (etag and response.headers.get('ETag') != etag):  # servers may ignore `If-Range`
                    partial.discard()
                    raise TransientError('the server has another file than before')
            else:
                start = 0
                partial.path.unlink(missing_ok=True)  # before the new ETag is written
            total = _total_size(response, start, size)
            partial.etag = response.headers.get('ETag')
            _receive(response, partial, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows the part, which is complete if the server's file is as long
            if start and (error.headers.get('Content-Range') or '').endswith(f'/{start}') and size in (None, start):
                return
            partial.discard()
            raise TransientError('the server does not have the rest of the file') from error
        if error.code not in _TRANSIENT:
            raise DownloadError(f'the server answers {error.code} {error.reason}.') from error
        raise TransientError(f'the server answers {error.code} {error.reason}', _retry_after(error.headers)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            raise DownloadError(f'the server is not found ({error.reason}).') from error
        raise TransientError(f'the server cannot be reached ({error.reason})') from error
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:  # before the answer's headers ended
        raise TransientError(f'the server does not answer ({type(error).__name__}: {error})') from error


def _total_size(response: http.client.HTTPResponse, start: int, size: int | None) -> int | None:
    """Size of the whole file, which the server announces or the caller knows."""
    length = response.headers.get('Content-Length')
    total = start + int(length) if length and _is_number(length) else None
    if size is not None and total not in (None, size):
        raise DownloadError(f'the server offers {total} bytes, the published file has {size}.')
    if (total or 0) > MAX_BYTES:
        raise DownloadError(f'the server offers {total} bytes, the limit is {MAX_BYTES}.')
    return size if total is None else total


def _receive(
    response: http.client.HTTPResponse, partial: _PartialFile, start: int, total: int | None, progress: Progress | None
) -> None:
    limit = MAX_BYTES if total is None else total
    received = start
    try:
        with partial.path.open('r+b' if start else 'wb') as file:
            file.seek(start)
            while chunk := _read_chunk(response):
                received += len(chunk)
                if received > limit:
                    raise DownloadError(f'the server sends more than {limit} bytes.')
                file.write(chunk)
                if progress:
                    progress(received, total)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, DownloadError):
        partial.discard()
        raise
    if total is not None and received < total:
        raise TransientError(f'the connection ended after {received} of {total} bytes')


def _read_chunk(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end, or if the connection was closed early."""
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f'the connection broke ({type(error).__name__}: {error})') from error


def _is_number(text: str) -> bool:
    # not `isdigit` alone: `int` fails on some scripts' digits, and on thousands of digits
    return text.isascii() and text.isdigit() and len(text) < 20


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    value = (headers.get('Retry-After') or '').strip()
    if _is_number(value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
