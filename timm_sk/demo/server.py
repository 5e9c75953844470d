"""Serving the page: by default on this machine alone, with uploads in a temporary folder and bounded requests."""

import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from starlette.middleware import Middleware

from ..console import log
from .app import DEFAULT_MODEL, build_app, theme
from .sharing import ShareMetadata
from .uploads import MAX_BYTES
from .visitors import BodyLimit, HostCheck, UploadQuota

MAX_QUEUED = 256
MAX_REQUESTS = 1024  # that have left the queue; most of them wait for their turn
MAX_BODY_BYTES = MAX_BYTES + 100_000  # a file and its multipart headers
UPLOAD_QUOTA = 1_000_000_000  # bytes of all uploads


@contextmanager
def _gradio_settings() -> Iterator[Path]:
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
            yield Path(folder)
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value


@contextmanager
def serving(
    model: str = DEFAULT_MODEL, *, host: str | None = None, port: int | None = None, allowed_hosts: Collection[str] = ()
) -> Iterator[str]:
    """Serve the page while the context lasts.

    Args:
        model: Initial model.
        host: Address to bind to; GRADIO_SERVER_NAME, else 127.0.0.1, if None.
        port: Port; GRADIO_SERVER_PORT, else the first free one from 7860, if None.
        allowed_hosts: Names that requests may give the server, in addition to `host`, localhost, addresses, and the
            name of a Hugging Face Space (SPACE_HOST).

    Yields:
        The address of the page.

    Raises:
        ValueError: If the model cannot be loaded.
        OSError: If the port is taken.
    """
    here = Path(__file__).parent
    names = [*allowed_hosts, *filter(None, (host, *map(os.environ.get, ('GRADIO_SERVER_NAME', 'SPACE_HOST'))))]
    with _gradio_settings() as uploads:
        app = build_app(model)
        app.queue(max_size=MAX_QUEUED, default_concurrency_limit=None)
        middleware = [
            Middleware(HostCheck, names=names),
            Middleware(ShareMetadata),
            Middleware(BodyLimit, limit=MAX_BODY_BYTES),
            Middleware(UploadQuota, folder=uploads, quota=UPLOAD_QUOTA, largest=MAX_BODY_BYTES),
        ]
        try:
            _, address, _ = app.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                max_threads=MAX_REQUESTS,
                app_kwargs=dict(middleware=middleware),
                quiet=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                footer_links=['api', 'gradio'],
                theme=theme(),
                css=(here / 'style.css').read_text(encoding='utf-8'),
                js=(here / 'keyboard.js').read_text(encoding='utf-8'),
            )
            yield address
        finally:
            app.close(verbose=False)


def serve(
    model: str = DEFAULT_MODEL, *, host: str | None = None, port: int | None = None, allowed_hosts: Collection[str] = ()
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; arguments as for `serving`."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder is removed too
    with suppress(KeyboardInterrupt), serving(model, host=host, port=port, allowed_hosts=allowed_hosts) as address:
        print(address, flush=True)
        log('Press Ctrl-C to stop.')
        Event().wait()
