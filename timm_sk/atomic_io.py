"""Writing files and folders that are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, which takes its place when it is complete; an error leaves all as it was.

    Args:
        folder: Where it shall be; an older one is replaced, and is there again at the next call if a process was
            killed while it did that.
    """
    new, old = (folder.with_name(f'.{folder.name}.{state}') for state in ('new', 'old'))
    _clear(folder, new, old)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob('*'):
            if file.is_file():
                with file.open('rb+') as opened:
                    os.fsync(opened.fileno())
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
    finally:
        _clear(folder, new, old)


def _clear(folder: Path, new: Path, old: Path) -> None:
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears, or replaces an older one, whole or not at all, even if the power fails.

    What a killed process leaves beside it ends in `.partial`.
    """
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file to the disk."""
    with path.open('w') as file:
        json.dump(content, file, indent=2)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write to the disk which files a folder has, where the platform can."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
