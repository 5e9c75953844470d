"""A file of a Hugging Face repository, fetched by the hub's own client into its own cache, and verified there."""

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from ..checkpoints import Source
from ..errors import CorruptCheckpointError, DownloadError, UnwritableStoreError
from .store import Store
from .trust_on_first_use import check_first_seen, first_seen
from .verify import check_against_table, git_blob_sha1_of

_logger = logging.getLogger(__name__)


class UnreachableHubError(DownloadError):
    """Raised when the hub gives no answer, or must not be asked, and the file is not in the client's cache."""


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    from huggingface_hub import constants  # heavy; it reads the variable once, at its own import

    return bool(constants.HF_HUB_OFFLINE)


def download_timeout() -> float:
    """Seconds without another byte after which a download has failed: `HF_HUB_DOWNLOAD_TIMEOUT`."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def hub_file(
    source: Source, store: Store, *, cache_dir: str | os.PathLike[str] | None = None, only_cached: bool = False
) -> tuple[Path, str]:
    """Fetch a hub's file and verify it: against the table, else against the hub's own hash and the first one seen.

    A damaged file is fetched again once.

    Args:
        source: Of the kind 'hub'.
        store: Where the hash that was seen first is kept.
        cache_dir: The client's cache; None for the one that its environment variables say.
        only_cached: Make no request.

    Returns:
        Its path in the client's cache, and its sha256.

    Raises:
        UnreachableHubError: If there is no answer, and the file is not cached.
        DownloadError: If the client cannot fetch it for another reason.
        CorruptCheckpointError: If it is damaged, or another than before.
    """
    path = _fetch(source, cache_dir, only_cached=only_cached)
    try:
        sha256 = _verify(path, source, store)
    except CorruptCheckpointError as error:
        if only_cached or is_offline():
            raise
        _logger.warning('%s Fetching it again.', error)
        try:
            path = _fetch(source, cache_dir, force_download=True)
        except DownloadError as failure:
            raise CorruptCheckpointError(f'{error} It could not be fetched again: {failure}') from failure
        try:
            sha256 = _verify(path, source, store)
        except CorruptCheckpointError:
            path.resolve().unlink(missing_ok=True)  # else other programs would load it
            path.unlink(missing_ok=True)
            raise
    if not source.sha256:
        with suppress(UnwritableStoreError):  # without a folder for the store, nothing was seen before
            check_first_seen(store, source, sha256)
    return path, sha256


def _fetch(
    source: Source, cache_dir: str | os.PathLike[str] | None, *, only_cached: bool = False, force_download: bool = False
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not only_cached and not is_offline():
        _require_answer(source, cache_dir)
    try:
        return Path(
            hf_hub_download(
                source.location or '',
                source.filename,
                revision=source.revision,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                force_download=force_download,
                local_files_only=only_cached,
                library_name='timm_sk',
            )
        )
    except LocalEntryNotFoundError as error:
        if only_cached or is_offline():
            raise UnreachableHubError('it is not in the cache of huggingface_hub.') from error
        raise UnreachableHubError(f'the hub gives no answer ({_first_line(error.__cause__ or error)}).') from error
    except OSError as error:
        raise DownloadError(f'{type(error).__name__}: {_first_line(error)} (cache: {_cache(cache_dir)})') from error
    except Exception as error:  # which HTTP client's errors these are depends on huggingface_hub's version
        raise DownloadError(f'{type(error).__name__}: {_first_line(error)}') from error


def _require_answer(source: Source, cache_dir: str | os.PathLike[str] | None) -> None:
    """Ask for a file that is not cached, before the client does, which takes minutes to give up on a silent network.

    Raises:
        UnreachableHubError: If there is no answer, in two attempts.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    location, filename, revision = source.location or '', source.filename, source.revision
    if isinstance(try_to_load_from_cache(location, filename, _cache(cache_dir), revision), str):
        return
    for attempt in (1, 2):
        try:
            get_hf_file_metadata(
                hf_hub_url(location, filename, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            return
        except HfHubHTTPError:  # an answer, which the client handles
            return
        except Exception as error:  # as in `_fetch`
            if attempt == 2:
                raise UnreachableHubError(
                    f'the hub gives no answer ({type(error).__name__}: {_first_line(error)}).'
                ) from error
            time.sleep(1)


def _verify(path: Path, source: Source, store: Store) -> str:
    """The file's sha256, if all hashes agree with it."""
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
            f'the hub gives "{expected}" as the hash of {source.filename}, which is neither a sha256 nor a git '
            'hash, and the table of checkpoints has none either: there is nothing to verify the file by.'
        )
    if found != expected:
        raise CorruptCheckpointError(f'{path} is damaged: its hash is {found}, the hub says {expected}.')
    return sha256


def _hash_by_hub(path: Path, source: Source, store: Store) -> str:
    """The file's hash as the hub gave it, without a request where that is known."""
    blob = path.resolve()
    if blob.parent.name == 'blobs':  # the cache names a file by its ETag
        return blob.name
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:  # where the platform has no symbolic links, the cache does not say
        url = hf_hub_url(source.location or '', source.filename, revision=source.revision)
        return get_hf_file_metadata(url).etag or ''
    except Exception as error:  # as above
        with suppress(UnwritableStoreError):
            if seen := first_seen(store, source):
                return seen
        raise DownloadError(f'the hub does not say its hash: {type(error).__name__}: {_first_line(error)}') from error


def _cache(cache_dir: str | os.PathLike[str] | None) -> str:
    from huggingface_hub import constants

    return str(cache_dir or constants.HF_HUB_CACHE)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), '')
