"""Download a file of a Hugging Face repository with the hub's client, and verify it in the client's cache."""

import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..checkpoints import Source
from ..errors import CorruptCheckpointError, DownloadError, UnwritableStoreError
from .http_client import UnreachableError
from .store import Store
from .trust_on_first_use import check_first_seen, first_seen
from .verify import check_against_table, git_blob_sha1_of

_SECONDS_BEFORE_NOTICE = 30

_logger = logging.getLogger(__name__)


class UnreachableHubError(UnreachableError):
    """Raised when the hub does not answer, or the network is forbidden, and the file is not in the client's cache."""


def hub_file(
    source: Source, store: Store, *, cache_dir: str | os.PathLike[str] | None = None, only_cached: bool = False
) -> tuple[Path, str]:
    """Download and verify a hub's file; returns its path in the client's cache, and its sha256.

    It is verified by the table's hash, else by the hub's hash and the first one recorded. A damaged file is downloaded
    again once.

    Args:
        source: A source of kind 'hub'.
        store: The store that records the first hash.
        cache_dir: The client's cache; None for the one of its environment variables.
        only_cached: Make no request.

    Raises:
        UnreachableHubError: If the hub does not answer, and the file is not cached.
        DownloadError: If the download fails for another reason.
        CorruptCheckpointError: If the file is damaged, or differs from the first one.
    """
    cache = os.fspath(cache_dir or constants.HF_HUB_CACHE)
    only_cached = only_cached or constants.HF_HUB_OFFLINE
    path = _fetch(source, cache, only_cached=only_cached)
    try:
        sha256 = _verify(path, source, store)
    except CorruptCheckpointError as error:
        if only_cached:
            raise
        _logger.warning('%s Downloading it again.', error)
        try:
            path = _fetch(source, cache, force_download=True)
        except DownloadError as failure:
            raise CorruptCheckpointError(f'{error} It could not be downloaded again: {failure}') from failure
        try:
            sha256 = _verify(path, source, store)
        except CorruptCheckpointError:
            path.resolve().unlink(missing_ok=True)  # so that no other program loads it
            path.unlink(missing_ok=True)
            raise
    if not source.sha256:
        with suppress(UnwritableStoreError):  # without a store, nothing was recorded
            check_first_seen(store, source, sha256)
    return path, sha256


def require_hub(repository: str, *filenames: str, cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Check that a file of a repository is cached, or that the Hub answers, for clients that try a dozen times.

    Args:
        repository: Its id, or `id@revision`.
        *filenames: Files of which one has to be in the client's cache if the Hub does not answer.
        cache_dir: The client's cache; None for the one of its environment variables.

    Raises:
        UnreachableHubError: If neither is so.
    """
    location, _, revision = repository.partition('@')
    sources = [Source(kind='hub', location=location, filename=name, revision=revision or None) for name in filenames]
    cache = os.fspath(cache_dir or constants.HF_HUB_CACHE)
    if not any(is_cached(source, cache) for source in sources):
        _require_answer(sources[0])


def is_cached(source: Source, cache: str | None = None) -> bool:
    """Whether a hub's file is in the client's cache."""
    return isinstance(try_to_load_from_cache(source.location, source.filename, cache, source.revision), str)


def _fetch(source: Source, cache: str, *, only_cached: bool = False, force_download: bool = False) -> Path:
    if not only_cached and not is_cached(source, cache):
        _require_answer(source)
    notice = threading.Timer(
        _SECONDS_BEFORE_NOTICE,
        _logger.warning,
        ('Still waiting for %s of %s, or for its lock in %s.', source.filename, source.location, cache),
    )
    notice.daemon = True
    notice.start()
    try:
        return Path(
            hf_hub_download(
                source.location,
                source.filename,
                revision=source.revision,
                cache_dir=cache,
                force_download=force_download,
                local_files_only=only_cached,
                library_name='timm_sk',
            )
        )
    except LocalEntryNotFoundError as error:
        if only_cached:
            raise UnreachableHubError('it is not in the cache of huggingface_hub.') from error
        raise UnreachableHubError(f'the hub does not answer ({_first_line(error.__cause__ or error)}).') from error
    except Exception as error:  # which HTTP client's errors these are depends on huggingface_hub's version
        where = f' (cache: {cache})' if isinstance(error, OSError) else ''
        raise DownloadError(f'{type(error).__name__}: {_first_line(error)}{where}') from error
    finally:
        notice.cancel()


def _require_answer(source: Source) -> None:
    """Ask for a file that is not cached before the client does, which takes minutes to give up on a silent network."""
    url = hf_hub_url(source.location, source.filename, revision=source.revision)
    for attempt in (1, 2):
        try:
            get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return
        except HfHubHTTPError:  # an answer, which the client handles
            return
        except Exception as error:  # as in `_fetch`
            if attempt == 2:
                reason = f'{type(error).__name__}: {_first_line(error)}'
                raise UnreachableHubError(f'the hub does not answer ({reason}).') from error
            time.sleep(1)


def _verify(path: Path, source: Source, store: Store) -> str:
    """Compare the file with all known hashes; returns its sha256."""
    sha256 = check_against_table(path, source)
    if source.sha256:
        return sha256
    expected = _hash_by_hub(path, source, store)
    if re.fullmatch('[0-9a-f]{64}', expected):
        found = sha256
    elif re.fullmatch('[0-9a-f]{40}', expected):
        found = git_blob_sha1_of(path)
    else:
        raise DownloadError(
            f'{source.filename} cannot be verified: its hash on the hub, "{expected}", is neither a sha256 nor a git '
            'hash, and the table of checkpoints has none.'
        )
    if found != expected:
        raise CorruptCheckpointError(f'{path} is damaged: its hash is {found}, on the hub it is {expected}.')
    return sha256


def _hash_by_hub(path: Path, source: Source, store: Store) -> str:
    """The file's hash on the hub, without a request if the cache has it."""
    blob = path.resolve()
    if blob.parent.name == 'blobs':  # files in the cache are named by their ETag
        return blob.name
    try:  # on platforms without symbolic links, the cache does not have it
        return get_hf_file_metadata(hf_hub_url(source.location, source.filename, revision=source.revision)).etag or ''
    except Exception as error:  # as in `_fetch`
        with suppress(UnwritableStoreError):
            if seen := first_seen(store, source):
                return seen
        raise DownloadError(f'the hub does not give its hash: {type(error).__name__}: {_first_line(error)}') from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), '')
