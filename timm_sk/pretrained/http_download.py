"""Download a file of a release by HTTP, with retries, and resume what was interrupted."""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants

from ..atomic_io import no_follow
from ..errors import DownloadError
from .http_client import MAX_HEADER_BYTES, Response, TransientError, send

ATTEMPTS = 4
MAX_BYTES = 4 << 30  # the largest of these nets has 3.1 GiB
_MAX_WAIT = 60.0  # seconds
_CHUNK_BYTES = 1 << 18
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP status

Progress = Callable[[int, int | None], None]


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    extent: tuple[int, int] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Download a file atomically.

    An interrupted download is resumed, in this call or a later one, if the server gave the file an ETag and still has
    the same one, or if `resume` is set. An attempt has failed after huggingface_hub's `HF_HUB_DOWNLOAD_TIMEOUT`
    seconds without an answer or another byte, or after three times as many with less than 1,000 bytes each.

    Args:
        url: URL of the file.
        path: Path to write; its folder is created.
        size: Size of the file in bytes, if known.
        extent: First byte and end of the part to download; None for the whole file.
        resume: Resume even if the server gives no ETag; for files whose hash the caller checks.
        progress: Called with the bytes received so far and, if known, those of the whole file.

    Raises:
        DownloadError: If the server refuses, or sends another size than announced or known.
        UnreachableError: If it cannot be reached, or the connection breaks or is too slow.
        OSError: If the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _PartialFile(path)
    if extent:
        size = extent[1] - extent[0]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, partial, size=size, extent=extent, resume=resume, progress=progress)
            break
        except TransientError as failure:
            if attempt == ATTEMPTS:
                raise failure.final(f'{failure}, {ATTEMPTS} times.') from failure
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
    """The part of a file that was downloaded so far, and the file's ETag. No link in their place is followed."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f'{path.name}.partial')
        self._etag_path = path.with_name(f'{path.name}.partial.etag')

    @property
    def size(self) -> int:
        return self.path.lstat().st_size if _is_plain(self.path) else 0

    def open(self, start: int) -> BinaryIO:
        """Open the part for writing; a new file if nothing of it is kept."""
        if not start:
            self.path.unlink(missing_ok=True)
        return open(self.path, 'r+b' if start else 'xb', opener=no_follow)

    @property
    def etag(self) -> str:
        """Empty if the server gave none; a weak one (W/…) is not kept, as it does not promise the same bytes."""
        return self._etag_path.read_text('latin-1').strip() if _is_plain(self._etag_path) else ''

    @etag.setter
    def etag(self, etag: str | None) -> None:
        self._etag_path.unlink(missing_ok=True)
        if etag and not etag.startswith('W/'):
            with self._etag_path.open('x', encoding='latin-1') as file:
                file.write(etag)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._etag_path.unlink(missing_ok=True)


def _attempt(
    url: str,
    partial: _PartialFile,
    *,
    size: int | None,
    extent: tuple[int, int] | None,
    resume: bool,
    progress: Progress | None,
) -> None:
    etag = partial.etag
    start = partial.size if resume or etag else 0
    request = urllib.request.Request(url, headers={'User-Agent': 'timm_sk', 'Accept-Encoding': 'identity'})
    first, last = (extent[0], extent[1] - 1) if extent else (0, '')
    if start or extent:
        request.add_header('Range', f'bytes={first + start}-{last}')
        if etag:
            request.add_header('If-Range', etag)
    try:
        response = send(request, timeout=float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing follows the part, which is complete if the server's file is as long
            is_whole = (error.headers.get('Content-Range') or '').endswith(f'/{start}') and size in (None, start)
            if start and is_whole and (resume or error.headers.get('ETag') == etag):
                return
            partial.discard()
            raise TransientError('the server does not have the rest of the file', final=DownloadError) from error
        reason = f'the server answers {error.code} {error.reason}'
        if error.code not in _TRANSIENT:
            raise DownloadError(f'{reason}.') from error
        raise TransientError(reason, _retry_after(error.headers), final=DownloadError) from error
    with response:
        if response.status == 206:
            end, total = _content_range(response, first + start)
            is_same = not etag or response.headers.get('ETag') == etag  # servers may ignore `If-Range`
            if total is None or not is_same:
                partial.discard()
                missing = f'does not send the file from byte {first + start} on'
                reason = 'has another file than before' if total else missing
                raise TransientError(f'the server {reason}', final=DownloadError)
            if extent and end:
                end, total = min(end, extent[1]) - first, size
        elif response.status == 200 and extent:
            raise DownloadError('the server does not send parts of a file.')
        elif response.status == 200:
            start = 0
            partial.path.unlink(missing_ok=True)  # before the new ETag is written
            end = total = None if response.chunked else _number(response.headers.get('Content-Length'))
        else:
            raise DownloadError(f'the server answers {response.status} {response.reason}, without the file.')
        if size is not None and total not in (None, size):
            raise DownloadError(f'the server offers {total} bytes, the published file has {size}.')
        if total is None and size is None and not (response.chunked or resume):
            raise DownloadError('the server does not announce the size of the file, which could end early.')
        if (total or 0) > MAX_BYTES:
            raise DownloadError(f'the server offers {total} bytes, the limit is {MAX_BYTES}.')
        total = size if total is None else total
        partial.etag = response.headers.get('ETag')
        limit = MAX_BYTES if total is None else total
        response.incoming.allowed = 2 * (limit - start) + MAX_HEADER_BYTES  # chunks have headers
        received = _receive(response, partial, start, limit if end is None else end, total, progress)
    if total is not None and received < total:
        raise TransientError(f'the connection ended after {received} of {total} bytes')


def _content_range(response: Response, start: int) -> tuple[int | None, int | None]:
    """Where an answer's part of the file ends, and the file's size; None if it is not the part from `start` on."""
    found = re.fullmatch(r'bytes (\d+)-(\d+)/(\d+)', response.headers.get('Content-Range') or '')
    begin, last, total = map(_number, found.groups()) if found else (None, None, None)
    if begin != start or last is None or total is None or not begin <= last < total:
        return None, None
    length = _number(response.headers.get('Content-Length'))
    return (last + 1, total) if response.chunked or length in (None, last + 1 - begin) else (None, None)


def _receive(
    response: Response, partial: _PartialFile, start: int, limit: int, total: int | None, progress: Progress | None
) -> int:
    """Write the answer's body, up to `limit` bytes of the whole file, behind the part; returns the part's size."""
    received = start
    try:
        with partial.open(start) as file:
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
    return received


def _read_chunk(response: Response) -> bytes:
    """The next bytes; none at the end, or if the connection was closed early."""
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f'the connection broke ({type(error).__name__}: {error})') from error


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _number(text: str | None) -> int | None:
    # not `isdigit` alone: `int` fails on some scripts' digits, and on thousands of digits
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    value = (headers.get('Retry-After') or '').strip()
    seconds = _number(value)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None
