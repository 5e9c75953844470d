"""Serving the page: on this machine alone unless told otherwise, with uploads in a folder that goes with it."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event

from starlette.middleware import Middleware

from .app import DEFAULT_MODEL, beside, build_app, theme
from .body_limit import BodyLimit
from .uploads import MAX_BYTES

MOST_WAITING = 256
MOST_AT_A_TIME = 32  # mostly waiting for a model to be loaded: `analysis` bounds what computes
MOST_SENT = MAX_BYTES + 100_000  # what surrounds a file


@contextmanager
def _gradio_settings() -> Iterator[None]:
    """Set what gradio reads from the environment alone; uploads go into a temporary folder, removed in the end."""
    with tempfile.TemporaryDirectory(prefix='timm_sk_demo_') as folder:
        settings = {
            'GRADIO_TEMP_DIR': folder,
            'GRADIO_ANALYTICS_ENABLED': 'False',  # which would be sent to its makers
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
        model: That is chosen at first.
        host: Address to bind to; None for what GRADIO_SERVER_NAME says, else 127.0.0.1.
        port: None for what GRADIO_SERVER_PORT says, else the first free one from 7860 on.

    Yields:
        The page's address.

    Raises:
        ValueError: If the model cannot be had.
        OSError: If the port is taken.
    """
    with _gradio_settings():
        app = build_app(model)
        app.queue(max_size=MOST_WAITING, default_concurrency_limit=MOST_AT_A_TIME)
        try:
            _, address, _ = app.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                app_kwargs=dict(middleware=[Middleware(BodyLimit, most=MOST_SENT)]),
                quiet=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                theme=theme(),
                css=beside('style.css'),
                js=beside('keyboard.js'),
            )
            yield address
        finally:
            app.close(verbose=False)


def serve(model: str = DEFAULT_MODEL, *, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until the process is interrupted or told to end; arguments as for `serving`."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder goes then too
    with suppress(KeyboardInterrupt), serving(model, host=host, port=port) as address:
        print(f'{address} (Ctrl-C ends it)', flush=True)
        Event().wait()
