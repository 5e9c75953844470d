"""A loopback server that answers with the bytes that a test gives, whatever HTTP says about them."""

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[int], Iterable[bytes | float]]  # of the first byte that is asked for


@contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """Answer each connection with the bytes that `answer` yields, and pause for the seconds; yields the URL."""
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            request = b''
            while b'\r\n\r\n' not in request:
                request += connection.recv(1 << 16)
            start = re.search(rb'Range: bytes=(\d+)-', request)
            for part in answer(int(start[1]) if start else 0):
                if stopped.is_set():
                    return
                if isinstance(part, bytes):
                    connection.sendall(part)
                else:
                    stopped.wait(part)

    def accept() -> None:
        with suppress(OSError):
            while not stopped.is_set():
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(('127.0.0.1', 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f'http://127.0.0.1:{server.getsockname()[1]}/file.pth'
        finally:
            stopped.set()
            server.shutdown(socket.SHUT_RDWR)
