"""Where weights are stored on this machine: those that ship with the project, and the local store.

The store has a folder per checkpoint, laid out like a hub repository, so that timm's `local-dir:` loads it:
`model.safetensors` in our layout, `config.json`, and `origin.json`, which records the source. Folders are written
atomically.
"""

import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache, cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from ..atomic_io import atomic_dir, dir_leftovers, read_json, recover_dir, write_json
from ..checkpoints import Checkpoint, Source
from ..errors import CorruptCheckpointError, UnwritableStoreError
from .safetensors_io import save_safetensors
from .verify import sha256_of

WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME = 'model.safetensors', 'config.json', 'origin.json'

_PACKAGE = Path(__file__).resolve().parent.parent
_ORIGIN_VERSION = 1
_RESUMABLE_SECONDS = 24 * 3600  # for which an interrupted download of another checkpoint is kept
_SECONDS_BEFORE_NOTICE = 3
_TEXTS = ('kind', 'filename', 'sha256', 'stored_sha256', 'date')  # fields of an origin that are never missing
_SUBFOLDERS = ('.locks', '.downloads', '.first-seen')

_logger = logging.getLogger(__name__)


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
        root = store_root() if self._given_root is None else self._given_root
        _warn_if_shared(root)
        return root

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
            UnwritableStoreError: If a link is in the place of a folder or a file.
        """
        path = self.folder(name) / ORIGIN_NAME
        with _reading(path):
            _refuse_links(path.parent, path, path.with_name(WEIGHTS_NAME))
            if not path.parent.is_dir():
                return None
            try:
                origin = Origin(**read_json(path, version=_ORIGIN_VERSION))
                if not all(isinstance(getattr(origin, name), str) for name in _TEXTS):
                    raise ValueError(f'{", ".join(_TEXTS)} are not all texts')
                return origin
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
                f'the published one is {", ".join(pinned)}. {_remedy(path.parent)}'
            )
        return path

    def put(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], source: Source, *, sha256: str) -> Path:
        """Store a state dict in our layout, or replace a stored one; returns the weights' path. Call it in the `lock`.

        Args:
            checkpoint: The table's row.
            tensors: The state dict.
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
            lock = self._file_lock(name)
            try:
                lock.acquire(timeout=_SECONDS_BEFORE_NOTICE)
            except Timeout:
                _logger.warning('Waiting for another process that writes %s and holds %s.', name, lock.lock_file)
                lock.acquire()
        try:
            with self.writing():
                folder, downloads = self.folder(name), self.downloads(name)
                _refuse_links(folder, downloads, *dir_leftovers(folder), *downloads.glob('*'))
                self._clear_leftovers(name)
            yield
        finally:
            lock.release()

    def _file_lock(self, name: str) -> FileLock:
        folder = self.root / '.locks'
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_links(path := folder / f'{name}.lock')
        return FileLock(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an OSError to an error that names the store's folder."""
        try:
            _refuse_links(*(self.root / name for name in _SUBFOLDERS))
            yield
        except OSError as error:
            raise UnwritableStoreError(
                f'The local store {self.root} cannot be written ({error}). '
                'Free some space, or set TIMM_SK_HOME to a folder that can be written.'
            ) from error

    def _clear_leftovers(self, name: str) -> None:
        """Remove what killed processes left of this checkpoint, and of others that no process holds the lock of."""
        recover_dir(self.folder(name))
        old = time.time() - _RESUMABLE_SECONDS
        staged = {path.stem.removeprefix('.') for end in ('new', 'old') for path in self.root.glob(f'.*.{end}')}
        downloaded = {path.name for path in self.root.glob('.downloads/*') if _modified(path) < old}
        for other in (staged | downloaded) - {name}:
            with suppress(Timeout), self._file_lock(other).acquire(blocking=False):
                recover_dir(self.folder(other))
                if other in downloaded:
                    shutil.rmtree(self.downloads(other), ignore_errors=True)


@cache
def _warn_if_shared(root: Path) -> None:
    """Warn, once in a process, of a store in which other users can replace weights."""
    try:
        status = root.stat()
    except OSError:  # reported by what reads or writes it
        return
    if os.name != 'posix':  # others have no such permissions
        return
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getgid()):
        _logger.warning('Other users can write to the local store %s, and replace its weights: use `chmod go-w`.', root)


def _refuse_links(*paths: Path) -> None:
    """Raise an UnwritableStoreError for a link, which others may have put where the store is about to write."""
    for path in paths:
        if path.is_symlink():
            raise UnwritableStoreError(f'{path} is a link, and the local store follows none: remove it.')


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
