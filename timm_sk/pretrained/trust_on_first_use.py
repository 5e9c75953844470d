"""The first verified hash of a source that is not pinned, kept so that another file under the same name is refused."""

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

from ..atomic_io import write_json
from ..checkpoints import Source
from ..errors import CorruptCheckpointError
from .store import Store


def record_path(store: Store, source: Source) -> Path:
    """Where a source's record is or will be; the file's name begins as the source's file does."""
    key = json.dumps([source.kind, source.location, source.revision, source.filename])
    readable = ''.join(c if c.isalnum() else '-' for c in (source.location or '').rpartition('/')[2])
    return store.root / '.first-seen' / f'{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json'


def first_seen(store: Store, source: Source) -> str | None:
    """The sha256 that a source's file had when it was first verified; None if it was not seen before.

    Raises:
        CorruptCheckpointError: If the record cannot be read.
    """
    path = record_path(store, source)
    try:
        return json.loads(path.read_text())['sha256']
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpointError(
            f'The record {path} cannot be read ({error}). Delete it to accept the file as it comes now.'
        ) from error


def check_first_seen(store: Store, source: Source, sha256: str) -> None:
    """Compare a file with the first of its source.

    Raises:
        CorruptCheckpointError: If it is another one; names both hashes and how to accept it.
    """
    first = first_seen(store, source)
    if first not in (None, sha256):
        raise CorruptCheckpointError(
            f'the file has changed since it was first used: its sha256 is {sha256}, it was {first}. If its makers '
            f'changed it and you trust them, delete {record_path(store, source)} to accept the new one.'
        )


def record_first_seen(store: Store, source: Source, sha256: str) -> None:
    """Record a source's file that passed its checks, unless there is a record already.

    Raises:
        UnwritableStoreError: If it cannot be written.
    """
    path = record_path(store, source)
    if path.exists():
        return
    with store.writing():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f'.{path.name}.{os.getpid()}')
        try:
            record = dict(source=source.location, revision=source.revision, filename=source.filename, sha256=sha256)
            write_json(staged, dict(record, date=datetime.now(timezone.utc).isoformat(timespec='seconds')))
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
