"""From a file of any layout to a stored checkpoint in ours."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from ..checkpoints import Checkpoint, Source
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, UnreadableCheckpointError
from .convert import recognize
from .readers import read_checkpoint
from .store import Store
from .verify import check_against_table, check_state_dict, sha256_of, trust_of

StateDict = dict[str, Tensor]


def to_our_layout(state_dict: StateDict, *, arch: str | None = None) -> StateDict:
    """Rename a state dict of a layout that `convert` knows; one in our layout passes unchanged.

    Args:
        state_dict: Of any of these layouts.
        arch: The architecture that it is meant for, if known.

    Raises:
        MismatchedCheckpointError: If a key has no place in the layout, or the layout's nets are other functions than
            the architecture, which no key tells: Caffe's and MindCV's have other pools.
    """
    layout = recognize(state_dict)
    if layout is None:
        return state_dict
    if arch and not re.fullmatch(layout.archs, arch):
        raise MismatchedCheckpointError(
            f"The checkpoint is not of {arch}: the nets of its layout, {layout.name}, have other pools. Caffe's are "
            "`sknet50` and `sknet101`, MindCV's the architectures that end with `_mindcv`."
        )
    return layout.to_ours(state_dict)


def check_fit(
    state_dict: Mapping[str, Tensor], checkpoint: Checkpoint, shapes: Mapping[str, Size], *, has_classifier: bool = True
) -> None:
    """Check that a state dict in our layout is the checkpoint's architecture's.

    Args:
        state_dict: What is to be loaded or stored.
        checkpoint: Its row.
        shapes: By key of the architecture, with the checkpoint's classifier.
        has_classifier: Whether the classifier must be there.

    Raises:
        MismatchedCheckpointError: If it is of another model; names the keys.
    """
    classifier = [f'{checkpoint.classifier}.{leaf}' for leaf in ('weight', 'bias')]
    check_state_dict(state_dict, shapes, dropped=[] if has_classifier else classifier)


def header_of(path: Path) -> StateDict:
    """The tensors of a safetensors file as shapes and types without content.

    Raises:
        UnreadableCheckpointError: If it is no such file.
    """
    try:
        with safe_open(path, 'pt') as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device='meta') for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UnreadableCheckpointError(f'{path} is no safetensors file: {error}.') from error


def is_in_our_layout(path: Path) -> bool:
    """Whether a file can be loaded as it is: a safetensors file whose names are not another layout's."""
    if path.suffix != '.safetensors':
        return False
    return recognize(header_of(path)) is None


def store_converted(
    path: Path,
    checkpoint: Checkpoint,
    shapes: Mapping[str, Size],
    *,
    source: Source,
    sha256: str,
    store: Store,
) -> Path:
    """Read a file that was verified, convert it, check it and store it; call it in the checkpoint's turn.

    Returns:
        The path of the stored weights.

    Raises:
        UnreadableCheckpointError: If it is damaged, hostile or of an unknown format.
        MismatchedCheckpointError: If it is not the checkpoint's architecture's.
        UnwritableStoreError: If it cannot be stored.
    """
    converted = to_our_layout(read_checkpoint(path), arch=checkpoint.arch)
    check_fit(converted, checkpoint, shapes, has_classifier=source.has_classifier)
    ordered = {key: converted[key] for key in shapes if key in converted}
    return store.put(checkpoint, ordered, source, sha256=sha256, trust=trust_of(source))


def store_file(path: Path, checkpoint: Checkpoint, shapes: Mapping[str, Size], *, store: Store | None = None) -> Path:
    """Store a checkpoint from a file that a person fetched; from then on it loads as any other.

    Args:
        path: The file, of any format and layout that is read.
        checkpoint: What it is.
        shapes: By key of the architecture, with the checkpoint's classifier.
        store: Where to; None for the local store.

    Returns:
        The path of the stored weights.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptCheckpointError: If the table has hashes of all the checkpoint's files, and none is this file's.
        UnreadableCheckpointError: If it is damaged, hostile or of an unknown format.
        MismatchedCheckpointError: If it is not the checkpoint's architecture's.
        UnwritableStoreError: If it cannot be stored.
    """
    source, sha256 = _source_of(path, checkpoint), sha256_of(path)
    if not _has_hash(source) and any(not known.has_classifier for known in checkpoint.sources):
        names = to_our_layout(read_checkpoint(path), arch=checkpoint.arch)
        source = replace(source, has_classifier=f'{checkpoint.classifier}.weight' in names)
    store = store or Store()
    with store.lock(checkpoint.name):
        return store_converted(path, checkpoint, shapes, source=source, sha256=sha256, store=store)


def _source_of(path: Path, checkpoint: Checkpoint) -> Source:
    """The source that a file comes from, by the table's hashes."""
    complaints = []
    for source in filter(_has_hash, checkpoint.sources):
        try:
            check_against_table(path, source)
        except (CorruptCheckpointError, UnreadableCheckpointError) as error:
            complaints.append(str(error))
        else:
            return source
    unknown = [source for source in checkpoint.sources if not _has_hash(source)]
    if complaints and not unknown:
        raise CorruptCheckpointError(
            f'{path} is none of the published files of {checkpoint.name}. {" ".join(complaints)} Fetch it again.'
        )
    manual = next((source for source in unknown if source.kind == 'manual'), None)
    return manual or Source(kind='file', filename=path.name)


def _has_hash(source: Source) -> bool:
    return bool(source.sha256 or source.sha256_prefix or source.content_sha1)
