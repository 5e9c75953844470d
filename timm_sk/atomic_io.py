"""Atomic writes: a file or a folder is complete or absent, even if the process is killed or the power fails."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

FORMAT_VERSION = 'format_version'
_MAX_JSON_BYTES = 16 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically; an older one is replaced.

    A killed process may leave a file beside it whose name ends in `.partial`.
    """
    partial = path.with_name(f'{path.name}.{os.getpid()}.{threading.get_ident()}.partial')
    partial.unlink(missing_ok=True)
    try:
        with partial.open('xb') as file:  # which follows no link that is in its place
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(folder: Path, name: str = '*') -> list[Path]:
    """Files that `atomic_write` left in a folder when its process was killed, of all names or of one."""
    return [path for path in folder.glob(f'{name}.*.partial') if re.search(r'\.\d+\.\d+\.partial$', path.name)]


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: yields an empty folder beside it, which replaces it at the end of the block.

    An error leaves the old folder as it was. If a process is killed while it replaces one, the next call restores that
    first.
    """
    new, old = dir_leftovers(folder)
    recover_dir(folder)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob('*'):
            if file.is_file():
                with file.open('rb+') as opened:
                    os.fsync(opened.fileno())
        _sync_folder(new)
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
        _sync_folder(folder.parent)
    finally:
        recover_dir(folder)


def recover_dir(folder: Path) -> None:
    """Restore a folder that a killed process had moved aside, and remove what it had not finished."""
    new, old = dir_leftovers(folder)
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def dir_leftovers(folder: Path) -> tuple[Path, Path]:
    """Where `atomic_dir` writes the new folder, and where it moves the old one."""
    return folder.with_name(f'.{folder.name}.new'), folder.with_name(f'.{folder.name}.old')


def no_follow(path: str, flags: int) -> int:
    """An opener for `open` that refuses a link in place of the file, where the platform can."""
    return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0), 0o666)


def require_empty_dir(folder: Path) -> None:
    """Check that a folder can be written: it is empty, or does not exist and can be created.

    Raises:
        ValueError: If it has files, is a file, or cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file: choose a folder.')
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty: choose another folder, or remove it.')
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f'{folder} cannot be created in {above}: choose another folder.')


def write_json(path: Path, content: Mapping[str, Any], *, version: int | None = None) -> None:
    """Write a JSON file atomically, with the version of its format, if it has one."""
    versioned = {FORMAT_VERSION: version, **content} if version else content
    with atomic_write(path) as file:
        file.write(json.dumps(versioned, indent=2).encode() + b'\n')


def read_json(path: Path, *, version: int) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a JSON object, or has another version.
    """
    if path.exists() and not path.is_file():  # but a pipe or a device, which may have no end
        raise ValueError('it is not a file')
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f'it is larger than {_MAX_JSON_BYTES} bytes')
    try:
        content = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error
    if not isinstance(content, dict):
        raise ValueError('it is not a JSON object')
    found = content.pop(FORMAT_VERSION, None)
    if found != version:
        raise ValueError(f'it has format version {found}, this version of timm_sk reads {version}')
    return content


def _sync_folder(folder: Path) -> None:
    """Write a folder's list of files to the disk, where the platform can."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
