"""What the visitors of the page may take: hosts, bytes of requests and uploads, and turns to compute."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_WAITING = 64  # requests of a visitor
MAX_UPLOADS = 4  # of a visitor at a time


class BusyError(Exception):
    """Raised if a visitor has too many requests at a time."""


class Turns:
    """Turns to do something, `at_a_time` for each visitor: nobody waits for the requests of another."""

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._requests: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, visitor: str) -> AsyncIterator[None]:
        """Wait for a turn of a visitor, and hold it while the context lasts; BusyError if too many wait already."""
        if self._requests[visitor] >= MAX_WAITING:
            raise BusyError
        self._requests[visitor] += 1
        try:
            async with self._turns.setdefault(visitor, asyncio.Semaphore(self._at_a_time)):
                yield
        finally:
            self._requests[visitor] -= 1
            if not self._requests[visitor]:
                del self._requests[visitor], self._turns[visitor]


class HostCheck:
    """ASGI middleware that answers to its own names only: a page of another name may be of an attacker (DNS rebinding).

    localhost is its own too, and addresses such as 192.168.1.5: no name server decides what they mean.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {'localhost', *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] in ('http', 'websocket'):
            host = Headers(scope=scope).get('host', '')
            if not self._is_own(host):
                name = host.partition(':')[0][:100]
                text = f'Unknown host {name!r}: start the server with --allowed-host and this name.'
                return await PlainTextResponse(text, 421)(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        with suppress(ValueError):  # neither a name nor an address
            name = urlsplit(f'//{host}').hostname or ''
            return name in self._names or bool(ipaddress.ip_address(name))
        return False


class BodyLimit:
    """ASGI middleware that answers 413 to longer bodies; gradio limits files alone and keeps other bodies in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
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
    """ASGI middleware that limits the bytes of all uploads together: the oldest in the folder are deleted for new ones.

    Files that are in the folder before the first upload are kept.
    """

    def __init__(self, app: ASGIApp, folder: Path, quota: int, largest: int) -> None:
        self._app, self._folder, self._quota, self._largest = app, folder, quota, largest
        self._kept = {*_files(folder)}
        self._turns, self._receiving = Turns(MAX_UPLOADS), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http' or scope['method'] != 'POST' or not scope['path'].rstrip('/').endswith('/upload'):
            return await self._app(scope, receive, send)
        try:
            async with self._turns.turn(visitor_of(scope.get('client'))):
                await self._upload(scope, receive, send)
        except BusyError:
            await PlainTextResponse('Too many uploads at a time from your address.', 429)(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        reserved = self._largest * (self._receiving + 1)
        if reserved > self._quota:
            return await PlainTextResponse('Too many uploads at a time: try again.', 429)(scope, receive, send)
        self._receiving += 1
        try:
            await asyncio.to_thread(self._make_room, self._quota - reserved)
            await self._app(scope, receive, send)
        finally:
            self._receiving -= 1

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
    """Identifies a visitor: the host of a client, which is (host, port) or None; of an IPv6 address its network."""
    host = client[0] if client else ''
    with suppress(ValueError):
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    return host
