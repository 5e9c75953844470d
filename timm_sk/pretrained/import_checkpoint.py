"""Convert files of any layout to checkpoints of our layout in the store."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from ..checkpoints import Checkpoint, Source
from ..errors import CorruptCheckpointError, MismatchedCheckpointError, UnreadableCheckpointError
from .convert import is_simclr_variable, recognize, take_backbone
from .readers import read_checkpoint
from .store import Store
from .verify import check_against_table, check_state_dict, sha256_of

StateDict = dict[str, Tensor]


def to_our_layout(state_dict: StateDict, *, arch: str | None = None) -> StateDict:
    """Convert a state dict of a layout that `convert` knows; others are returned unchanged.

    Args:
        state_dict: State dict of any layout.
        arch: The architecture to load it into, if known.

    Raises:
        MismatchedCheckpointError: If the layout lacks a key, or its nets differ from the architecture in what no key
            shows: Caffe's, MindCV's and Paddle's have other pools.
    """
    state_dict = take_backbone(state_dict)
    layout = recognize(state_dict)
    if layout is None:
        return state_dict
    if arch and not re.fullmatch(layout.archs, arch):
        raise MismatchedCheckpointError(
            f'The checkpoint is not of {arch}: the nets of its layout, {layout.name}, have other pools. '
            "Caffe's are `sknet50` and `sknet101`, MindCV's end with `_mindcv`, Paddle's with `_paddle`, "
            "SimCLRv2's with `_simclr` or `_simclr_proj`."
        )
    converted = layout.to_ours(state_dict)
    if arch and arch.endswith('_simclr'):  # whose files have the projection head too
        return {key: tensor for key, tensor in converted.items() if not key.startswith('proj.')}
    return converted


def check_fit(
    state_dict: Mapping[str, Tensor], checkpoint: Checkpoint, shapes: Mapping[str, Size], source: Source
) -> None:
    """Check that a state dict of a source, in our layout, fits the architecture, as `check_state_dict` does."""
    check_state_dict(state_dict, shapes, dropped=[] if source.has_classifier else checkpoint.classifier_keys)


def is_in_our_layout(path: Path) -> bool:
    """Whether a file can be loaded without conversion: a safetensors file in our layout.

    Raises:
        UnreadableCheckpointError: If it is named like one, but is none.
    """
    if path.suffix != '.safetensors':
        return False
    try:
        with safe_open(path, 'pt') as file:
            return recognize(dict.fromkeys(file.keys())) is None
    except SafetensorError as error:
        raise UnreadableCheckpointError(f'{path} is not a safetensors file: {error}.') from error


def store_converted(
    path: Path, checkpoint: Checkpoint, shapes: Mapping[str, Size], *, source: Source, sha256: str, store: Store
) -> Path:
    """Convert a verified file, check that it fits and store it; returns its path. Call it in the checkpoint's lock.

    Raises:
        UnreadableCheckpointError: If the file is damaged, hostile or of an unknown format.
        MismatchedCheckpointError: If it belongs to another architecture.
        UnwritableStoreError: If it cannot be stored.
    """
    state_dict = read_checkpoint(path, wanted=is_simclr_variable)
    _check_step(state_dict, checkpoint)
    converted = to_our_layout(state_dict, arch=checkpoint.arch)
    check_fit(converted, checkpoint, shapes, source)
    ordered = {key: converted[key] for key in shapes if key in converted}
    return store.put(checkpoint, ordered, source, sha256=sha256)


def _check_step(state_dict: StateDict, checkpoint: Checkpoint) -> None:
    """Check a TensorFlow checkpoint's training step: the net that its weights are for shows in nothing else."""
    step = state_dict.get('global_step')
    for source in checkpoint.sources:
        published = re.search(r'-(\d+)\.index$', source.location)
        if published and step is not None and step.numel() == 1 and step.item() != int(published[1]):
            raise MismatchedCheckpointError(
                f'The checkpoint is of training step {step.item()}, {checkpoint.name} of step {published[1]}: '
                f'it is another checkpoint. Use {source.location} and its shards.'
            )


def store_file(path: Path, checkpoint: Checkpoint, shapes: Mapping[str, Size], *, store: Store | None = None) -> Path:
    """Store a checkpoint from a local file, so that it loads like any other; returns the path of the stored weights.

    Args:
        path: The file, of any supported format and layout.
        checkpoint: The table's row.
        shapes: Shapes by key of the architecture, with the checkpoint's classifier.
        store: The store to write; None for the local store.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptCheckpointError: If the table has hashes of all the checkpoint's files, and none matches.
        UnreadableCheckpointError, MismatchedCheckpointError, UnwritableStoreError: See `store_converted`.
    """
    source, sha256 = _source_of(path, checkpoint), sha256_of(path)
    if not source.published_hash and any(not known.has_classifier for known in checkpoint.sources):
        names = to_our_layout(read_checkpoint(path, wanted=is_simclr_variable), arch=checkpoint.arch)
        source = replace(source, has_classifier=f'{checkpoint.classifier}.weight' in names)
    store = store or Store()
    with store.lock(checkpoint.name):
        return store_converted(path, checkpoint, shapes, source=source, sha256=sha256, store=store)


def _source_of(path: Path, checkpoint: Checkpoint) -> Source:
    """The source that a file comes from, by the table's hashes."""
    reasons = []
    known = [source for source in checkpoint.sources if source.published_hash]
    for source in known:
        try:
            check_against_table(path, source)
            return source
        except (CorruptCheckpointError, UnreadableCheckpointError) as error:
            reasons.append(str(error))
    if known and len(known) == len(checkpoint.sources):
        raise CorruptCheckpointError(
            f'{path} is none of the published files of {checkpoint.name}. {" ".join(reasons)} Download it again.'
        )
    manual = checkpoint.first('manual')
    return manual if manual and not manual.published_hash else Source(kind='file', filename=path.name)
