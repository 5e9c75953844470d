"""A loopback server that speaks the Hugging Face Hub's HTTP API to the real huggingface_hub client, and its faults."""

import json
import math
import re
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_repos import File, Refused, Repo, is_lfs
from hub_routes import Call, Download, Store, execute, find


@dataclass(kw_only=True)
class Fault:
    """A fault in the answers to requests whose line, `METHOD /path?query`, matches `request`.

    Attributes:
        request: Regular expression, searched in the request's line.
        times: Number of faulty answers; `math.inf` for all.
        delay: Seconds before the headers; `math.inf` hangs until the server stops.
        status: Error status to answer; the request is then not executed.
        headers: Headers that are added or replaced (`Retry-After`, a wrong `X-Linked-Size`).
        flip: Index in the whole body of a byte whose lowest bit is inverted.
        length: Wrong `Content-Length`; bytes beyond it are not sent.
        cut: Number of bytes of the body after which the connection is closed.
        rate: Bytes of the body per second.
        hits: Number of faulty answers so far.
    """

    request: str
    times: float = 1
    delay: float = 0.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    flip: int | None = None
    length: int | None = None
    cut: int | None = None
    rate: float = math.inf
    hits: int = field(default=0, init=False)

    def strikes(self, line: str) -> bool:
        """Whether this request gets a faulty answer; counts it."""
        if self.hits >= self.times or not re.search(self.request, line):
            return False
        self.hits += 1
        return True


NO_FAULT = Fault(request='')


class Hub(Store):
    """The server, as a context manager; `requests` counts by method and kind, `faults` can be added at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.faults: list[Fault] = []
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def __enter__(self) -> 'Hub':
        self.server = _Server(('127.0.0.1', 0), type('Handler', (_Handler,), dict(hub=self)))
        self.endpoint = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, folder: Path, *, private: bool = False) -> str:
        """Commit a folder's files to a repository, which is created if missing, without a request."""
        repo = self.repos.setdefault(name, Repo(name, private=private))
        contents = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
        files = {path: File(content, is_lfs(path, len(content))) for path, content in sorted(contents.items())}
        return repo.commit(f'Add {folder.name}', {**repo.files(), **files})

    def writes(self) -> dict[tuple[str, str], int]:
        """How many requests of each kind wrote."""
        return {key: count for key, count in self.requests.items() if key[0] in ('POST', 'PUT', 'DELETE')}

    def contents(self, name: str) -> dict[str, bytes]:
        """The files of a repository by path."""
        return {path: file.content for path, file in self.repos[name].files().items() if path != '.gitattributes'}

    def client_settings(self, cache: Path) -> dict[str, Any]:
        """Constants of huggingface_hub that point this process's client to this server, with a cache of its own."""
        return dict(
            HF_HUB_OFFLINE=False,
            HF_HUB_DISABLE_XET=True,
            HF_HUB_DISABLE_TELEMETRY=True,
            HF_HUB_CACHE=str(cache),
            ENDPOINT=self.endpoint,
            HUGGINGFACE_CO_URL_TEMPLATE=self.endpoint + '/{repo_id}/resolve/{revision}/{filename}',
        )

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables that point a new process's client to this server, with caches under `home`."""
        quiet = dict(HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_OFFLINE='0')
        return dict(HF_ENDPOINT=self.endpoint, HF_HOME=str(home), HF_TOKEN='', **quiet)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 makes some of many clients at once wait for a second


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = 'HTTP/1.1'

    def _serve(self) -> None:
        size = int(self.headers.get('Content-Length') or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            return  # an incomplete request is not executed
        line = f'{self.command} {self.path}'
        with self.hub.lock:
            fault = next((fault for fault in self.hub.faults if fault.strikes(line)), NO_FAULT)
        if not self.hub.stopped.wait(min(fault.delay, threading.TIMEOUT_MAX)):
            with suppress(ConnectionError):  # the client may have disconnected
                self._send(*self._answer(body, fault), fault)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  (the names that http.server looks for)

    def _answer(self, body: bytes, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(self.path)
        method = self.command.replace('HEAD', 'GET')
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ') or None
        function, arguments = find(method, url.path)
        with self.hub.lock:
            self.hub.requests[self.command, function.__name__] += 1
            try:
                if fault.status is not None:
                    raise Refused(fault.status, 'Ordered by the test')
                answer = execute(function, arguments, Call(self.hub, method, token, parse_qs(url.query), body))
            except Refused as refused:
                return refused.status, refused.headers, json.dumps(refused.content).encode()
        if not isinstance(answer, Download):
            return 200, {'Content-Type': 'application/json'}, json.dumps(answer).encode()
        return 200, {'Accept-Ranges': 'bytes', **answer.headers}, answer.content

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        if fault.flip is not None:
            flipped = bytearray(body)
            flipped[fault.flip] ^= 1
            body = bytes(flipped)
        wanted = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        if wanted and 'Accept-Ranges' in headers:
            start, size = int(wanted[1]), len(body)
            body = body[start : int(wanted[2] or size) + 1]
            status, covered = (206, f'{start}-{start + len(body) - 1}') if body else (416, '*')
            headers = {**headers, 'Content-Range': f'bytes {covered}/{size}'}
        length = len(body) if fault.length is None else fault.length
        self.send_response(status)
        for name, value in {**headers, **fault.headers, 'Content-Length': str(length), 'Connection': 'close'}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            body = body[:length][: fault.cut]
            step = max(1, int(min(fault.rate / 20, len(body))))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.hub.stopped.wait(step / fault.rate)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
