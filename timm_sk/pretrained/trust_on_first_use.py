"""Trust on first use: the first verified hash of an unpinned source is recorded, and other files are refused later."""

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

from ..atomic_io import read_json, write_json
from ..checkpoints import Source
from ..errors import CorruptCheckpointError
from .store import Store

_RECORD_VERSION = 1


def record_path(store: Store, source: Source) -> Path:
    """Path of a source's record, whether or not it exists; its name begins like the source's file."""
    key = json.dumps([source.kind, source.location, source.revision, source.filename])
    readable = ''.join(c if c.isalnum() else '-' for c in source.location.rpartition('/')[2])
    return store.root / '.first-seen' / f'{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json'


def first_seen(store: Store, source: Source) -> str | None:
    """The sha256 that a source's file had when it was first verified; None if there is no record.

    Raises:
        CorruptCheckpointError: If the record cannot be read.
    """
    path = record_path(store, source)
    try:
        return read_json(path, version=_RECORD_VERSION)['sha256']
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(
            f'The record {path} cannot be read ({error}). Delete it to accept the file that is downloaded now.'
        ) from error


def check_first_seen(store: Store, source: Source, sha256: str) -> None:
    """Compare a file's hash with the recorded one of its source.

    Raises:
        CorruptCheckpointError: If they differ; names both, and how to accept the new one.
    """
    first = first_seen(store, source)
    if first not in (None, sha256):
        raise CorruptCheckpointError(
            f'the file has changed since it was first used: its sha256 is {sha256}, it was {first}. If its makers '
            f'changed it and you trust them, delete {record_path(store, source)} to accept the new one.'
        )


def record_first_seen(store: Store, source: Source, sha256: str) -> None:
    """Record the hash of a source's file that passed its checks, unless there is a record.

    Raises:
        UnwritableStoreError: If it cannot be written.
    """
    path = record_path(store, source)
    with store.writing():
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        record = dict(
            source=source.location,
            revision=source.revision,
            filename=source.filename,
            sha256=sha256,
            date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )
        write_json(path, record, version=_RECORD_VERSION)
