"""Download single tensors of a TensorFlow checkpoint, whose shards may hold twice as much for the optimizer."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urljoin

from ..atomic_io import no_follow
from ..errors import DownloadError
from .http_download import MAX_BYTES, Progress, discard, download
from .readers.checkpoint import reader_errors
from .readers.stream import FormatError
from .readers.tensor_bundle import BundleEntry, read_index, read_tensor

_MAX_GAP_BYTES = 1 << 20  # that are downloaded to save a request


def download_tensors(url: str, index: Path, wanted: Callable[[str], bool], *, progress: Progress | None = None) -> None:
    """Download the tensors that `wanted` selects by name to their places in the shards beside a downloaded index.

    The rest of these files stays empty. Tensors that are there and intact are not downloaded again, and damaged ones
    once more. `url` is that of the index, `progress` is called with the bytes that were received, and those of all
    tensors that were missing.

    Raises:
        UnreadableCheckpointError: If the index is damaged.
        DownloadError, OSError: See `download`.
    """
    for _ in range(2):
        with reader_errors(index), index.open('rb') as opened:
            entries = read_index(opened, index)
        parts = _missing_parts({name: entry for name, entry in entries.items() if wanted(name)})
        total, done = sum(end - begin for _, begin, end in parts), 0
        if total > MAX_BYTES:
            raise DownloadError(f'its tensors have {total} bytes, the limit is {MAX_BYTES}.')
        for shard, begin, end in parts:
            part = shard.with_name(f'{shard.name}.{begin}')
            download(urljoin(url, shard.name), part, extent=(begin, end))
            mode = 'r+b' if shard.exists() else 'xb'
            with part.open('rb') as source, open(shard, mode, opener=no_follow) as file:
                file.seek(begin)
                shutil.copyfileobj(source, file)
            discard(part)
            done += end - begin
            if progress:
                progress(done, total)


def _missing_parts(entries: dict[str, BundleEntry]) -> list[tuple[Path, int, int]]:
    """Shard, first byte and end of the parts with missing and damaged tensors; one part for those close together."""
    parts: list[tuple[Path, int, int]] = []
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset)):
        with suppress(FormatError):
            read_tensor(name, entry)
            continue
        begin, end = entry.offset, entry.offset + entry.size
        if parts and parts[-1][0] == entry.shard and begin - parts[-1][2] <= _MAX_GAP_BYTES:
            begin = parts.pop()[1]
        parts.append((entry.shard, begin, end))
    return parts
