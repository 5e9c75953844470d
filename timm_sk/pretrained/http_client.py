"""Send a request by HTTP: bounded headers, a minimum rate, no insecure redirect.

Uses the standard library: huggingface_hub brings another HTTP client in each of its major versions.
"""

import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from typing import Any, cast

from ..errors import DownloadError

MAX_HEADER_BYTES = 1 << 16  # of one answer, and of what precedes it; also of a redirect's body
_MIN_RATE = 1000  # bytes per second: a seventh of a telephone modem's
_RATE_TIMEOUTS = 3  # timeouts of waiting over which the rate is measured


class UnreachableError(DownloadError):
    """Raised if no server answers, or the connection breaks or is too slow."""


class TransientError(Exception):
    """Raised when an attempt failed and another one may succeed."""

    def __init__(
        self, reason: str, wait: float | None = None, *, final: type[DownloadError] = UnreachableError
    ) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for, if it does
        self.final = final  # class of the error if all attempts fail


class _Incoming(io.RawIOBase):
    """What a server sends: at a minimum rate while it is waited for, and up to a number of bytes."""

    def __init__(self, raw: io.RawIOBase, timeout: float) -> None:
        self._raw = raw
        self._window = _RATE_TIMEOUTS * timeout
        self._waited, self._count = 0.0, 0  # seconds and bytes since the rate was last checked
        self.allowed = MAX_HEADER_BYTES  # bytes that may still come

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        begin = time.monotonic()
        count: int = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begin
        self._count += count
        self.allowed -= count
        if self.allowed < 0:
            raise http.client.HTTPException('it sends headers without an end')
        if count and self._waited > self._window:
            if self._count < _MIN_RATE * self._waited:
                raise TimeoutError(f'only {self._count} bytes in {self._waited:.0f} seconds')
            self._waited, self._count = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """An answer whose bytes are limited by `incoming`."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.incoming = _Incoming(self.fp.detach(), cast(float, sock.gettimeout()))
        self.fp = io.BufferedReader(self.incoming)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections, plain and secure, whose answers are `Response`s."""

    def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> Any:
        connection_class: Any = type('Connection', (http_class,), dict(response_class=Response))
        return super().do_open(connection_class, req, **http_conn_args)


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and from http to http, but not from https to an insecure protocol."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        followed = ('https:',) if req.full_url.startswith('https:') else ('https:', 'http:')
        if not newurl.startswith(followed):
            raise DownloadError(f'the server redirects to {newurl}, which is not secure.')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def send(request: urllib.request.Request, timeout: float) -> Response:
    """Send a request, and receive the headers of the answer."""
    try:
        return urllib.request.build_opener(SafeRedirects, _Handler).open(request, timeout=timeout)
    except (urllib.error.HTTPError, DownloadError):
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            raise UnreachableError(f'the server is not found ({error.reason}).') from error
        raise TransientError(f'the server cannot be reached ({error.reason})') from error
    except (OSError, http.client.HTTPException) as error:  # before the answer's headers ended
        raise TransientError(f'the server does not answer ({type(error).__name__}: {error})') from error
    except ValueError as error:
        raise DownloadError(f'the server redirects to an invalid address ({error}).') from error
