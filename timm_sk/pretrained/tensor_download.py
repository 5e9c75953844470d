"""Download single tensors of a TensorFlow checkpoint, whose shards may hold twice as much for the optimizer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from ..errors import DownloadError
from .http_download import MAX_BYTES, Progress, discard, download
from .readers.checkpoint import reader_errors
from .readers.tensor_bundle import find_missing


def download_tensors(
    url: str, index: Path, wanted: Callable[[str], bool], *, timeout: float, progress: Progress | None = None
) -> None:
    """Download tensors to their places in the shards beside an index; the rest of these files stays empty.

    Tensors that are there and intact are not downloaded again, and damaged ones once more.

    Args:
        url: The index; the shards are beside it.
        index: The downloaded index.
        wanted: Selects tensors by name.
        timeout: Seconds without an answer or another byte, after which an attempt has failed.
        progress: Called with the bytes that are there and those of all tensors.

    Raises:
        UnreadableCheckpointError: If the index is damaged.
        DownloadError: If the server refuses, is not reached, or does not send parts of files, or there is too much.
        OSError: If a file cannot be written.
    """
    for _ in range(2):
        with reader_errors(index), index.open('rb') as opened:
            parts = find_missing(opened, index, wanted)
        total, done = sum(end - begin for _, begin, end in parts), 0
        if total > MAX_BYTES:
            raise DownloadError(f'its tensors have {total} bytes, the limit is {MAX_BYTES}.')
        for name, begin, end in parts:
            part = index.with_name(f'{name}.{begin}')
            download(urljoin(url, name), part, extent=(begin, end), timeout=timeout)
            shard = index.with_name(name)
            with part.open('rb') as source, shard.open('r+b' if shard.exists() else 'wb') as file:
                file.seek(begin)
                shutil.copyfileobj(source, file)
            discard(part)
            done += end - begin
            if progress:
                progress(done, total)
