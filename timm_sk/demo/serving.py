"""Serving the page: on this machine alone unless told otherwise, with uploads in a folder that goes with it."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import gradio as gr

from .app import DEFAULT_MODEL, build_app, style
from .pictures import MAX_BYTES

MOST_WAITING = 256
MOST_AT_A_TIME = 4

_FOLDER = 'GRADIO_TEMP_DIR'


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Let gradio, for as long as the context lasts, put uploads into a temporary folder that is removed then."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix='timm_sk_demo_') as folder:
        os.environ[_FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(_FOLDER)
            if before is not None:
                os.environ[_FOLDER] = before


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
    with upload_folder():
        app = build_app(model)
        app.queue(max_size=MOST_WAITING, default_concurrency_limit=MOST_AT_A_TIME)
        try:
            _, address, _ = app.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                quiet=True,
                share=False,
                ssr_mode=False,
                theme=gr.themes.Default(primary_hue='blue'),
                css=style(),
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
