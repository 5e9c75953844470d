"""What a user's machine may refuse: room on the disk, and the right to write. Linux and other POSIX systems."""

import ctypes
import os
import pwd
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest

T = TypeVar('T')


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def without_privileges(function: Callable[[], T]) -> T:
    """Call a function in a thread that has lost root's right to ignore permissions, if it had it."""
    with ThreadPoolExecutor(1, initializer=_drop_capabilities) as thread:
        return thread.submit(function).result()


def no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system know nobody's home folder, as in a container whose user has no entry."""

    def refuse(who: int | str) -> None:
        raise KeyError(who)

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', refuse)
    monkeypatch.setattr(pwd, 'getpwnam', refuse)


def _drop_capabilities() -> None:
    if os.geteuid() != 0 or not sys.platform.startswith('linux'):
        return
    version, this_thread = 0x20080522, 0
    header = (ctypes.c_uint32 * 2)(version, this_thread)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), 'capset')
