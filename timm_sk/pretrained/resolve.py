"""Find or download a checkpoint's weights, from the first source that works."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from huggingface_hub import constants
from torch import Size

from ..checkpoints import Checkpoint, Source
from ..errors import (
    CorruptCheckpointError,
    DownloadError,
    TimmSkError,
    UnobtainableCheckpointError,
    UnwritableStoreError,
)
from .convert import is_simclr_variable
from .hf_hub import UnreachableHubError, hub_file
from .http_client import UnreachableError
from .http_download import Progress, discard, download
from .import_checkpoint import check_fit, is_in_our_layout, store_converted
from .readers import read_checkpoint
from .store import WEIGHTS_NAME, Store, bundled_folder
from .tensor_download import download_tensors
from .trust_on_first_use import check_first_seen, first_seen, record_first_seen
from .verify import check_against_table

Shapes = Callable[[], Mapping[str, Size]]

_logger = logging.getLogger(__name__)


def fetch(
    checkpoint: Checkpoint,
    shapes: Shapes,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    needs_classifier: bool = True,
    store: Store | None = None,
    store_all: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Find or download a checkpoint's weights: a verified safetensors file in our layout.

    The order is: weights that ship with the project, the local store, the row's other sources in the table's order.

    Args:
        checkpoint: The table's row.
        shapes: Returns the architecture's shapes by key, with the checkpoint's classifier; called only if a file is
            converted, or used for the first time.
        cache_dir: Folder that replaces huggingface_hub's cache; converted files are stored in its folder `timm_sk`.
        needs_classifier: Whether the classifier's weights must be included.
        store: The only store to read and write; None for the local one.
        store_all: Also store files of a hub that are in our layout, instead of using them from the client's cache.
        progress: Called during the download of a release, with the bytes received so far and, if known, those of the
            whole file; the hub's client shows its own bar.

    Raises:
        CorruptCheckpointError: If the file that ships with the project is damaged, and there is no other source.
        UnobtainableCheckpointError: If no source works; gives the reason for each, and what to do.
    """
    failures: list[str] = []
    errors: list[Exception] = []  # of the sources
    if checkpoint.bundled:
        path = bundled_folder(checkpoint.name) / WEIGHTS_NAME
        try:
            check_against_table(path, checkpoint.bundled)
            return path
        except (CorruptCheckpointError, OSError) as error:
            failures.append(f'bundled: {error} Install timm_sk again.')
            if len(checkpoint.sources) == 1:
                raise CorruptCheckpointError(f'{error} Install timm_sk again.') from error
    own = [Store(Path(cache_dir) / 'timm_sk')] if cache_dir else []
    stores = [store] if store else [*own, Store()]
    for candidate in stores:
        try:
            if stored := candidate.find(checkpoint, needs_classifier=needs_classifier):
                return stored
        except (CorruptCheckpointError, UnwritableStoreError) as error:
            _logger.warning('%s', error)
            failures.append(f'local store: {error}')
    if needs_classifier and checkpoint.sources and not checkpoint.has_classifier:
        raise UnobtainableCheckpointError(
            f'{checkpoint.name} is a backbone without a classifier: use `num_classes=0` or `features_only=True`.'
        )
    hub_is_unreachable = False
    for source in checkpoint.sources:
        if needs_classifier and not source.has_classifier:
            failures.append(f'{_describe(source)}: its file has no classifier.')
            continue
        try:
            if source.kind == 'hub':
                path, sha256 = hub_file(source, stores[0], cache_dir=cache_dir, only_cached=hub_is_unreachable)
                return _use_hub_file(path, sha256, source, checkpoint, shapes, stores[0], store_all=store_all)
            if source.kind == 'url':
                return _from_url(source, checkpoint, shapes, stores[0], progress)
        except (TimmSkError, OSError) as error:
            hub_is_unreachable |= isinstance(error, UnreachableHubError)
            errors.append(error)
            kind = f'{type(error).__name__}: ' if isinstance(error, OSError) else ''
            failures.append(f'{_describe(source)}: {kind}{error}')
    reasons = ''.join(f'\n- {failure}' for failure in failures)
    verb = 'download' if all(isinstance(error, DownloadError) for error in errors) else 'load'
    raise UnobtainableCheckpointError(
        f'Could not {verb} the weights of {checkpoint.name}.{reasons}{_what_to_do(checkpoint, stores[0], errors)}'
    )


def _use_hub_file(
    path: Path, sha256: str, source: Source, checkpoint: Checkpoint, shapes: Shapes, store: Store, *, store_all: bool
) -> Path:
    """The file itself, if it is in our layout, else the stored conversion of it."""
    if is_in_our_layout(path) and not store_all:
        recorded = None
        with suppress(CorruptCheckpointError, UnwritableStoreError):  # of a store that cannot be read
            recorded = first_seen(store, source)
        if recorded != sha256:
            check_fit(read_checkpoint(path), checkpoint, shapes(), source)
            try:
                record_first_seen(store, source, sha256)
            except UnwritableStoreError as error:
                _logger.warning('Later changes of %s will not be detected: %s', _describe(source), error)
        return path
    with store.lock(checkpoint.name):
        if stored := _find_stored(store, checkpoint, source):
            return stored
        stored = store_converted(path, checkpoint, shapes(), source=source, sha256=sha256, store=store)
        record_first_seen(store, source, sha256)
        return stored


def _from_url(source: Source, checkpoint: Checkpoint, shapes: Shapes, store: Store, progress: Progress | None) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise DownloadError('HF_HUB_OFFLINE forbids the network.')
    with store.lock(checkpoint.name):
        if stored := _find_stored(store, checkpoint, source):
            return stored
        file = store.downloads(checkpoint.name) / source.url_name
        try:
            sha256 = _download_verified(source, file, store, progress)
            if not source.is_pinned:
                check_first_seen(store, source, sha256)
            if source.format == 'tensorflow':
                with store.writing():
                    download_tensors(source.location, file, is_simclr_variable, progress=progress)
            stored = store_converted(file, checkpoint, shapes(), source=source, sha256=sha256, store=store)
            record_first_seen(store, source, sha256)
            shutil.rmtree(file.parent, ignore_errors=True)
            return stored
        except TimmSkError as error:
            if not isinstance(error, DownloadError):  # which can be resumed
                shutil.rmtree(file.parent, ignore_errors=True)
            raise
        finally:
            with suppress(OSError):  # not empty, because a partial file stays, or never created
                file.parent.rmdir()


def _download_verified(source: Source, file: Path, store: Store, progress: Progress | None) -> str:
    """Download a file, and once more if it is damaged; returns its sha256."""
    resume = source.published_hash is not None
    fetch_file = partial(download, source.location, file, size=source.size, resume=resume, progress=progress)
    with store.writing():
        if file.is_symlink() or not file.exists():  # a file was left by a process that was killed during the conversion
            fetch_file()
        try:
            return check_against_table(file, source)
        except TimmSkError as error:
            _logger.warning('%s Downloading it again.', error)
        discard(file)
        fetch_file()
        return check_against_table(file, source)


def _find_stored(store: Store, checkpoint: Checkpoint, source: Source) -> Path | None:
    """The stored weights, if another process has stored them while this one waited for the lock."""
    try:
        return store.find(checkpoint, needs_classifier=source.has_classifier)
    except CorruptCheckpointError:  # already reported, and about to be replaced
        return None


def _describe(source: Source) -> str:
    revision = f'@{source.revision}' if source.revision else ''
    return f'{source.kind} {source.location}{revision}'.strip()


def _what_to_do(checkpoint: Checkpoint, store: Store, errors: Sequence[Exception]) -> str:
    """A line of advice; none if an error has it."""
    if manual := checkpoint.first('manual'):
        return (
            f'\nThe file must be downloaded by hand: open {manual.location} in a browser, save it, and run '
            f'`timm-sk weights convert <FILE> --to {checkpoint.name}`.'
        )
    try:
        folder = str(store.folder(checkpoint.name))
    except UnwritableStoreError:
        folder = f'{checkpoint.name} in a folder that TIMM_SK_HOME names'
    elsewhere = f'run `timm-sk weights pull {checkpoint.name}` on another machine and copy the folder to {folder}.'
    if constants.HF_HUB_OFFLINE:
        return f'\nHF_HUB_OFFLINE is set: unset it, or {elsewhere}'
    if any(isinstance(cause, UnreachableError) for error in errors for cause in (error, error.__cause__)):
        return f'\nCheck the network and try again, or {elsewhere}'
    if any(isinstance(error, DownloadError) for error in errors):
        return f'\nTry again later, update timm_sk in case the file has moved, or {elsewhere}'
    if any(not isinstance(error, UnwritableStoreError | OSError) for error in errors):
        return (
            '\nIf the server has another file than the published one, update timm_sk, which may know it, or report it.'
        )
    return ''
