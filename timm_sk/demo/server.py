"""Serving the page: by default on this machine alone, with uploads in a temporary folder and bounded requests."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import DEFAULT_MODEL, build_app, theme
from .uploads import MAX_BYTES

MAX_QUEUED = 256
MAX_CONCURRENT = 32  # most of them wait for a model to be loaded: `analysis` limits what computes
MAX_BODY_BYTES = MAX_BYTES + 100_000  # a file and its multipart headers


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


@contextmanager
def _gradio_settings() -> Iterator[None]:
    """Set what gradio reads only from the environment; uploads go to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix='timm_sk_demo_') as folder:
        settings = {
            'GRADIO_TEMP_DIR': folder,
            'GRADIO_ANALYTICS_ENABLED': 'False',  # else usage is sent to gradio
            'GRADIO_ANALYTICS_CACHE_FREQUENCY': '1000',  # else it sums up all past events after each one
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value


@contextmanager
def serving(model: str = DEFAULT_MODEL, *, host: str | None = None, port: int | None = None) -> Iterator[str]:
    """Serve the page while the context lasts.

    Args:
        model: Initial model.
        host: Address to bind to; GRADIO_SERVER_NAME, else 127.0.0.1, if None.
        port: Port; GRADIO_SERVER_PORT, else the first free one from 7860, if None.

    Yields:
        The address of the page.

    Raises:
        ValueError: If the model cannot be loaded.
        OSError: If the port is taken.
    """
    here = Path(__file__).parent
    with _gradio_settings():
        app = build_app(model)
        app.queue(max_size=MAX_QUEUED, default_concurrency_limit=MAX_CONCURRENT)
        try:
            _, address, _ = app.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                app_kwargs=dict(middleware=[Middleware(BodyLimit, limit=MAX_BODY_BYTES)]),
                quiet=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                theme=theme(),
                css=(here / 'style.css').read_text(encoding='utf-8'),
                js=(here / 'keyboard.js').read_text(encoding='utf-8'),
            )
            yield address
        finally:
            app.close(verbose=False)


def serve(model: str = DEFAULT_MODEL, *, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; arguments as for `serving`."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder is removed too
    with suppress(KeyboardInterrupt), serving(model, host=host, port=port) as address:
        print(f'{address} (press Ctrl-C to stop)', flush=True)
        Event().wait()
