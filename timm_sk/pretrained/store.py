"""Where weights are stored on this machine: those that ship with the project, and the local store.

The store has a folder per checkpoint, laid out like a hub repository, so that timm's `local-dir:` loads it:
`model.safetensors` in our layout, `config.json`, and `origin.json`, which records the source. Folders are written
atomically.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from ..atomic_io import atomic_dir, read_json, recover_dir, write_json
from ..checkpoints import Checkpoint, Source
from ..errors import CorruptCheckpointError, UnwritableStoreError
from .safetensors_io import save_safetensors
from .verify import sha256_of

WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME = 'model.safetensors', 'config.json', 'origin.json'

_PACKAGE = Path(__file__).resolve().parent.parent
_ORIGIN_VERSION = 1
_LEFTOVER_SECONDS = 24 * 3600  # when no process can still be writing what is left of another checkpoint


def bundled_folder(name: str) -> Path:
    """The folder of a checkpoint that ships with the project: in the installed package, else at the checkout's root."""
    installed = _PACKAGE / '_bundled'
    return (installed if installed.is_dir() else _PACKAGE.parent / 'weights') / name


def store_root() -> Path:
    """The local store's folder: `TIMM_SK_HOME`, else `timm_sk` in the platform's folder for caches.

    Raises:
        UnwritableStoreError: If that is in a home folder, and the system has none.
    """
    home = os.environ.get('TIMM_SK_HOME')
    try:
        return Path(home).expanduser() if home else _cache_folder() / 'timm_sk'
    except RuntimeError as error:
        given = f'TIMM_SK_HOME is "{home}"' if home else 'TIMM_SK_HOME is not set'
        raise UnwritableStoreError(
            f'The local store has no folder: {given}, and the system has no such home folder. '
            'Set TIMM_SK_HOME to a folder that can be written.'
        ) from error


def _cache_folder() -> Path:
    if sys.platform == 'win32' and (local := os.environ.get('LOCALAPPDATA')):
        return Path(local)
    if sys.platform == 'darwin':
        return Path.home() / 'Library' / 'Caches'
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source of a stored checkpoint.

    Attributes:
        kind, location, revision, filename: Fields of the table's source.
        sha256: Hash of the original file.
        pinned: Whether the file has the hash that its makers published.
        has_classifier: Whether the classifier's weights are included.
        stored_sha256: Hash of the stored `model.safetensors`.
        date: Date and time of storing, in ISO 8601.
    """

    kind: str
    location: str | None
    revision: str | None
    filename: str
    sha256: str
    pinned: bool
    has_classifier: bool
    stored_sha256: str
    date: str

    def is_from(self, source: Source) -> bool:
        """Whether the checkpoint was converted from this source's file, of any revision."""
        return (self.kind, self.location, self.filename) == (source.kind, source.location, source.filename)


class Store:
    """A local store; creating the object does not touch the disk.

    Args:
        root: The store's folder; None for `store_root()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._given_root = root

    @cached_property
    def root(self) -> Path:
        """The store's folder.

        Raises:
            UnwritableStoreError: If there is none; see `store_root`.
        """
        return store_root() if self._given_root is None else self._given_root

    def folder(self, name: str) -> Path:
        """The folder of a checkpoint, whether or not it exists."""
        return self.root / name

    def downloads(self, name: str) -> Path:
        """The folder for a checkpoint's downloads."""
        return self.root / '.downloads' / name

    def origin(self, name: str) -> Origin | None:
        """The source of a stored checkpoint; None if it is not stored.

        Raises:
            CorruptCheckpointError: If the record is unreadable.
        """
        path = self.folder(name) / ORIGIN_NAME
        with _reading(path):
            if not path.parent.is_dir():
                return None
            try:
                return Origin(**read_json(path, version=_ORIGIN_VERSION))
            except (FileNotFoundError, ValueError, TypeError) as error:
                raise CorruptCheckpointError(f'{path} cannot be read ({error}). {_remedy(path.parent)}') from error

    def find(self, checkpoint: Checkpoint, *, needs_classifier: bool = True) -> Path | None:
        """The stored weights of a checkpoint, verified; None if they are not stored.

        Raises:
            CorruptCheckpointError: If they are damaged, unreadable or not of the table's file.
        """
        origin = self.origin(checkpoint.name)
        if origin is None or (needs_classifier and not origin.has_classifier):
            return None
        path = self.folder(checkpoint.name) / WEIGHTS_NAME
        with _reading(path):
            if not path.is_file():
                raise CorruptCheckpointError(f'{path} is missing. {_remedy(path.parent)}')
            found = sha256_of(path)
        if found != origin.stored_sha256:
            raise CorruptCheckpointError(
                f'{path} is damaged: its sha256 is {found}, it was stored with {origin.stored_sha256}. '
                f'{_remedy(path.parent)}'
            )
        pinned = {source.sha256 for source in checkpoint.sources if origin.is_from(source) and source.sha256}
        if pinned and origin.sha256 not in pinned:
            raise CorruptCheckpointError(
                f'{path} was converted from a file with sha256 {origin.sha256}, '
                f'the published one is {", ".join(pinned)}. '
                f'{_remedy(path.parent)}'
            )
        return path

    def put(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], source: Source, *, sha256: str) -> Path:
        """Store a checkpoint, or replace a stored one; returns the weights' path. Call it in the checkpoint's `lock`.

        Args:
            checkpoint: The table's row.
            tensors: State dict in our layout.
            source: The source that it comes from.
            sha256: Hash of the original file.

        Raises:
            UnwritableStoreError: If the store cannot be written; it is then as before.
        """
        target = self.folder(checkpoint.name)
        with self.writing(), atomic_dir(target) as folder:
            save_safetensors(tensors, folder / WEIGHTS_NAME, metadata=dict(format='pt'))
            origin = Origin(
                kind=source.kind,
                location=source.location,
                revision=source.revision,
                filename=source.filename,
                sha256=sha256,
                pinned=source.is_pinned,
                has_classifier=f'{checkpoint.classifier}.weight' in tensors,
                stored_sha256=sha256_of(folder / WEIGHTS_NAME),
                date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            )
            write_json(folder / CONFIG_NAME, checkpoint.hub_config())
            write_json(folder / ORIGIN_NAME, asdict(origin), version=_ORIGIN_VERSION)
        return target / WEIGHTS_NAME

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait until no other process writes this checkpoint, then remove what killed ones left behind.

        Raises:
            UnwritableStoreError: If the store cannot be written.
        """
        with self.writing():
            folder = self.root / '.locks'
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f'{name}.lock')
            lock.acquire()
        try:
            with self.writing():
                self._clear_leftovers(name)
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an OSError to an error that names the store's folder."""
        try:
            yield
        except OSError as error:
            raise UnwritableStoreError(
                f'The local store {self.root} cannot be written ({error}). '
                'Free some space, or set TIMM_SK_HOME to a folder that can be written.'
            ) from error

    def _clear_leftovers(self, name: str) -> None:
        """Remove what killed processes left of this checkpoint, and what they left of others a day ago."""
        old = time.time() - _LEFTOVER_SECONDS
        for leftover in (*self.root.glob('.*.new'), *self.root.glob('.*.old')):
            written = leftover.stem.removeprefix('.')
            if written == name or _modified(leftover) < old:
                recover_dir(self.folder(written))
        for leftover in self.root.glob('.downloads/*'):
            if leftover.name != name and _modified(leftover) < old:
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert an OSError to an error that names the file."""
    try:
        yield
    except OSError as error:
        raise CorruptCheckpointError(
            f'{path} cannot be read ({error}). Make it readable, or set TIMM_SK_HOME to another folder.'
        ) from error


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return time.time()


def _remedy(folder: Path) -> str:
    return f'Delete the folder {folder}; the checkpoint is then downloaded again, if it can be.'
