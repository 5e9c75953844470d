"""Running Python in subprocesses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, cwd: Path | str = '/', **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments`, with this checkout importable, and capture what it prints."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '200', **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def free_port() -> int:
    """A port of the loopback interface that no process uses."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        return int(server.getsockname()[1])
