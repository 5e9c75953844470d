"""Where checkpoints lie on this machine: what ships with the project, and the local store.

The store has a folder per checkpoint, laid out as its hub repository would be, so that timm's `local-dir:` loads it:
`model.safetensors` in our layout, `config.json`, and `origin.json`, which says what it was made from. A folder is
written beside the others under a hidden name and renamed when it is on the disk, so it is there whole or not at all.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..atomic_io import sync_folder, write_json
from ..checkpoints import Checkpoint, Source
from ..errors import CorruptCheckpointError, UnwritableStoreError
from .hf_config import hub_config
from .safetensors_io import save_safetensors
from .verify import sha256_of

WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME = 'model.safetensors', 'config.json', 'origin.json'

_PACKAGE = Path(__file__).resolve().parent.parent
_LEFTOVER_SECONDS = 24 * 3600  # from then on, what another checkpoint's turn left behind is nobody's work any more


def bundled_folder(name: str) -> Path:
    """The folder of a checkpoint that ships with the project: in the installed package, else at the checkout's root."""
    installed = _PACKAGE / '_bundled'
    return (installed if installed.is_dir() else _PACKAGE.parent / 'weights') / name


def store_root() -> Path:
    """The local store's folder: `TIMM_SK_HOME`, else `timm_sk` in the platform's folder for caches.

    Raises:
        UnwritableStoreError: If that is in a home folder, and the system knows none.
    """
    home = os.environ.get('TIMM_SK_HOME')
    try:
        return Path(home).expanduser() if home else _cache_folder() / 'timm_sk'
    except RuntimeError as error:
        given = f'TIMM_SK_HOME is "{home}"' if home else 'TIMM_SK_HOME is not set'
        raise UnwritableStoreError(
            f'The local store has no folder: {given}, and the system knows no such home folder. '
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
    """What a stored checkpoint was made from.

    Attributes:
        kind, location, revision, filename: As of the table's source.
        sha256: Of the original file.
        trust: 'authentic' where its makers' hash was published and compared, else 'intact': as it came.
        has_classifier: Whether the classifier's weights are there.
        stored_sha256: Of the stored `model.safetensors`.
        date: When it was stored, in ISO 8601.
    """

    kind: str
    location: str | None
    revision: str | None
    filename: str
    sha256: str
    trust: str
    has_classifier: bool
    stored_sha256: str
    date: str


class Store:
    """A local store; making one touches nothing on the disk.

    Args:
        root: Its folder; None for `store_root()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._given_root = root

    @cached_property
    def root(self) -> Path:
        """Its folder, looked for when it is first needed.

        Raises:
            UnwritableStoreError: As `store_root`.
        """
        return store_root() if self._given_root is None else self._given_root

    def folder(self, name: str) -> Path:
        """Where a checkpoint's folder is or will be."""
        return self.root / name

    def downloads(self, name: str) -> Path:
        """Where the files from which a checkpoint is made are downloaded to."""
        return self.root / '.downloads' / name

    def origin(self, name: str) -> Origin | None:
        """What a stored checkpoint was made from; None if it is not stored.

        Raises:
            CorruptCheckpointError: If that cannot be read.
        """
        path = self.folder(name) / ORIGIN_NAME
        with _reading(path):
            if not path.parent.is_dir():
                return None
            try:
                return Origin(**json.loads(path.read_text()))
            except (FileNotFoundError, ValueError, TypeError) as error:
                raise CorruptCheckpointError(f'{path} cannot be read ({error}). {_remedy(path.parent)}') from error

    def find(self, checkpoint: Checkpoint, *, needs_classifier: bool = True) -> Path | None:
        """The stored weights of a checkpoint, verified; None if they are not stored.

        Raises:
            CorruptCheckpointError: If they are damaged or unreadable, or were made from another file than the table's.
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
        pinned = {source.sha256 for source in checkpoint.sources if _made_from(origin, source) and source.sha256}
        if pinned and origin.sha256 not in pinned:
            raise CorruptCheckpointError(
                f'{path} was made from a file with sha256 {origin.sha256}, the published one is {", ".join(pinned)}. '
                f'{_remedy(path.parent)}'
            )
        return path

    def put(
        self,
        checkpoint: Checkpoint,
        tensors: Mapping[str, Tensor],
        source: Source,
        *,
        sha256: str,
        trust: str,
    ) -> Path:
        """Store a checkpoint, in place of one that is there; call it in the checkpoint's `turn`.

        Args:
            checkpoint: Its row.
            tensors: In our layout.
            source: Where they come from.
            sha256: Of the original file.
            trust: 'authentic' or 'intact'.

        Returns:
            The path of its weights.

        Raises:
            UnwritableStoreError: If it cannot be written; nothing is left behind then.
        """
        with self.writing():
            staged = Path(tempfile.mkdtemp(prefix=f'{checkpoint.name}.', dir=_made(self.root / '.staging')))
            try:
                folder = staged / 'new'
                folder.mkdir()
                save_safetensors(tensors, folder / WEIGHTS_NAME, metadata=dict(format='pt'))
                origin = Origin(
                    kind=source.kind,
                    location=source.location,
                    revision=source.revision,
                    filename=source.filename,
                    sha256=sha256,
                    trust=trust,
                    has_classifier=f'{checkpoint.classifier}.weight' in tensors,
                    stored_sha256=sha256_of(folder / WEIGHTS_NAME),
                    date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
                )
                write_json(folder / CONFIG_NAME, hub_config(checkpoint))
                write_json(folder / ORIGIN_NAME, asdict(origin))
                sync_folder(folder)
                target = self.folder(checkpoint.name)
                if target.exists():
                    target.replace(staged / 'old')
                folder.replace(target)
                sync_folder(self.root)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return target / WEIGHTS_NAME

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until no other process makes this checkpoint, then clear what killed ones left behind.

        Raises:
            UnwritableStoreError: If the store cannot be written.
        """
        from filelock import FileLock  # not needed by who only reads

        with self.writing():
            lock = FileLock(_made(self.root / '.locks') / f'{name}.lock')
            lock.acquire()
        try:
            with self.writing():
                self._clear_leftovers(name)
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the disk refuses into an error that names the store's folder."""
        try:
            yield
        except OSError as error:
            raise UnwritableStoreError(
                f'The local store {self.root} cannot be written ({error}). '
                'Make room there, or set TIMM_SK_HOME to a folder that can be written.'
            ) from error

    def _clear_leftovers(self, name: str) -> None:
        old = time.time() - _LEFTOVER_SECONDS
        for leftover in self.root.glob('.staging/*'):
            made = leftover.name.rpartition('.')[0]
            if made == name or _changed(leftover) < old:
                if (leftover / 'old').is_dir() and not self.folder(made).exists():  # killed between two renames
                    (leftover / 'old').replace(self.folder(made))
                shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob('.downloads/*'):
            if leftover.name != name and _changed(leftover) < old:
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise CorruptCheckpointError(
            f'{path} cannot be read ({error}). Make it readable, or set TIMM_SK_HOME to another folder.'
        ) from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return time.time()


def _made_from(origin: Origin, source: Source) -> bool:
    return (origin.kind, origin.location, origin.filename) == (source.kind, source.location, source.filename)


def _remedy(folder: Path) -> str:
    return f'Delete the folder {folder}; what can be fetched will be fetched again.'
