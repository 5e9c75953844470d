"""What the visitors of the page may take: hosts, bytes of requests and uploads, and turns to compute."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_THREADS = 32  # most of them wait for a model to be loaded: `analysis` limits what computes
MAX_RUNNING, MAX_WAITING = 2, 64  # requests of a visitor
MAX_UPLOADS = 4  # of a visitor at a time


class BusyError(Exception):
    """Raised if a visitor has too many requests at a time."""


class Turns:
    """Runs functions in threads, a few at a time for each visitor: nobody waits for the requests of another."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix='timm_sk_demo')
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._requests: Counter[str] = Counter()

    async def run(self, visitor: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function when it is the visitor's turn.

        Raises:
            BusyError: If too many requests of the visitor wait already.
        """
        if self._requests[visitor] >= MAX_WAITING:
            raise BusyError
        self._requests[visitor] += 1
        try:
            async with self._turns.setdefault(visitor, asyncio.Semaphore(MAX_RUNNING)):
                return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))
        finally:
            self._requests[visitor] -= 1
            if not self._requests[visitor]:
                del self._requests[visitor], self._turns[visitor]


class HostCheck:
    """ASGI middleware that answers to its own names only: a page of another name may be of an attacker (DNS rebinding).

    Addresses such as 192.168.1.5 are its own: no name server decides what they mean.

    Args:
        app: Application.
        names: Names of this server in addition to localhost.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {'localhost', *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] in ('http', 'websocket'):
            name = _host_name(Headers(scope=scope).get('host', ''))
            if name not in self._names and not _is_address(name):
                text = f'Unknown host {name[:100]!r}: start the server with --allowed-host and this name.'
                return await PlainTextResponse(text, 421)(scope, receive, send)
        await self._app(scope, receive, send)


def _host_name(host: str) -> str:
    with suppress(ValueError):
        return urlsplit(f'//{host}').hostname or ''
    return ''


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


class BodyLimit:
    """ASGI middleware that answers 413 to longer bodies; gradio limits files alone and keeps other bodies in memory.

    Args:
        app: Application.
        limit: Maximum number of bytes.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self._app = app
        self._limit = limit
        self._refusal = f'A request may have {limit} bytes at most.'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get('content-length', '0')
        if length.isdecimal() and int(length) > self._limit:
            return await PlainTextResponse(self._refusal, 413)(scope, receive, send)
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get('body', b''))
            if read > self._limit:
                raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, bounded, send)


class UploadQuota:
    """ASGI middleware that limits the uploads of all visitors together; the oldest are deleted for new ones.

    Args:
        app: Application.
        folder: Folder of the uploads; files that are in it now are not deleted.
        quota: Number of bytes of all uploads.
        largest: Number of bytes of one upload.
    """

    def __init__(self, app: ASGIApp, folder: Path, quota: int, largest: int) -> None:
        self._app, self._folder, self._quota, self._largest = app, folder, quota, largest
        self._kept = {*_files(folder)}
        self._uploads: Counter[str] = Counter()  # that are being received, by visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http' or scope['method'] != 'POST' or not scope['path'].rstrip('/').endswith('/upload'):
            return await self._app(scope, receive, send)
        visitor = visitor_of(scope.get('client'))
        reserved = self._largest * (self._uploads.total() + 1)
        if self._uploads[visitor] >= MAX_UPLOADS or reserved > self._quota:
            text = 'Too many uploads at a time: wait until the others have ended.'
            return await PlainTextResponse(text, 429)(scope, receive, send)
        self._uploads[visitor] += 1
        try:
            await asyncio.to_thread(self._make_room, self._quota - reserved)
            await self._app(scope, receive, send)
        finally:
            self._uploads[visitor] -= 1
            self._uploads += Counter()  # drops visitors without uploads

    def _make_room(self, allowed: int) -> None:
        """Delete the oldest uploads until so many bytes are left at most; small files count as 64 kB."""
        found = []
        for path in _files(self._folder):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, max(status.st_size, 1 << 16), path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > allowed and path not in self._kept:
                path.unlink(missing_ok=True)
                total -= size


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if path.is_file()]


def visitor_of(client: Any) -> str:
    """Identifies a visitor: the host of a client, which is (host, port) or None."""
    return client[0] if client else ''
