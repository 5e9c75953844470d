"""webdataset shards that are read from an HTTP server and from a command, as from object storage."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from drawn_data import drawn, write_shards

from timm_sk.data import open_dataset

pytestmark = pytest.mark.deep


def test_shards_over_http_and_from_a_command(tmp_path: Path) -> None:
    pytest.importorskip('webdataset')
    pairs = [(image, label) for label, members in enumerate(drawn(4).values()) for image in members]
    folder = write_shards(tmp_path / 'shards', dict(train=[pairs[:5], pairs[5:]], validation=[pairs[::2]]))
    expected = [(image.tobytes(), label) for image, label in pairs[::2]]
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for address in (f'http://127.0.0.1:{server.server_port}', f'pipe:cat {folder}'):
            for _ in range(2):
                stream = open_dataset(f'wds/{address}', split='validation')
                assert [(image.tobytes(), label) for image, label, _ in stream] == expected
            train = open_dataset(f'wds/{address}', split='train', is_training=True)
            assert len(train) == 12
            assert {image.tobytes() for image, *_ in train} == {image.tobytes() for image, _ in pairs}
        server.shutdown()
