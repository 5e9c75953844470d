"""A loopback stand-in for the Hugging Face Hub's download routes, for the real huggingface_hub client."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = 'c0ffee' + '0' * 34


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve `root/<owner>/<name>/<file>` as the files of hub repositories; yields the endpoint's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            repo, _, rest = self.path.lstrip('/').partition('/resolve/')
            file = root / repo / rest.partition('/')[2]
            found = rest and file.is_file()
            body = file.read_bytes() if found else b'{"error": "Entry not found"}'
            self.send_response(200 if found else 404)
            if not found:
                self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('X-Repo-Commit', COMMIT)
            self.send_header('ETag', f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
