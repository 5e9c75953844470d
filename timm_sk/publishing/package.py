"""A fine-tuned model's checkpoint file as a folder that is ready for a hub."""

import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..atomic_io import staged
from ..checkpoints import CHECKPOINTS, Checkpoint, of_arch
from ..errors import MismatchedCheckpointError, UnknownModelError, UnloadableModelError
from ..pretrained import check_state_dict
from .hub_folder import fine_tuned_row, require_tag, told_settings, write_exported

_READ_ERRORS = (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, KeyError, AttributeError)
_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


def export_checkpoint(
    file: Path,
    *,
    arch: str,
    tag: str,
    out: Path | None = None,
    label_names: tuple[str, ...] | None = None,
    licence: str | None = None,
    origin: str | None = None,
    base: str | None = None,
) -> Path:
    """Write the folder of a fine-tuned model: weights, config, goldens, card, and its recipe where the file tells it.

    Args:
        file: What timm's `train.py` writes, or a state dict, as safetensors or PyTorch's; averaged weights win.
        arch: The architecture; the file's keys and shapes must be exactly its.
        tag: A name for the weights.
        out: The folder, new or empty; `arch.tag` in the working directory if not given.
        label_names: Names of the classes in order.
        licence: SPDX identifier of the weights' licence; the card says 'not established' if not given.
        origin: Who made the weights.
        base: `arch.tag` of the row whose input and preprocessing the training began from; the one that `train.py`
            recorded, else the architecture's default, if not given.

    Returns:
        The folder.

    Raises:
        UnknownModelError: If there is no such architecture, or no such row for it.
        UnloadableModelError: If the file cannot be read.
        MismatchedCheckpointError: If its keys or shapes are not the architecture's.
        ValueError: If the tag is no name, the folder is not empty, or the label names are not as many as the classes.
    """
    require_tag(tag)
    folder = out or Path(f'{arch}.{tag}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'{folder} exists and is not an empty folder: choose another with --out, or remove it.')
    state_dict, options = read_training_checkpoint(file)
    start = _base_row(arch, base or str(options.get('model') or ''), required=base is not None)
    row = _row(start, tag, state_dict, options, label_names=label_names, licence=licence, origin=origin)
    model = timm.create_model(arch, num_classes=row.num_classes, in_chans=row.input_size[0]).eval()
    check_state_dict(state_dict, {key: tensor.shape for key, tensor in model.state_dict().items()})
    model.load_state_dict(state_dict, strict=False)  # only counters of norms may be missing, as just checked
    base_model = start.hub_id if options.get('pretrained') else None
    with staged(folder) as written:
        write_exported(written, model, row, settings=told_settings(options), base_model=base_model)
    return folder


def read_training_checkpoint(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's state dict, and the options of timm's `train.py` if it tells them. Nothing in the file is executed.

    Raises:
        UnloadableModelError: If it cannot be read.
    """
    try:
        state_dict = timm.models.load_state_dict(str(file))
        options: object = None
        if file.suffix != '.safetensors':
            with torch.serialization.safe_globals([Namespace]):
                checkpoint = torch.load(file, map_location='cpu', weights_only=True, mmap=_is_zip(file))
            options = checkpoint.get('args') if isinstance(checkpoint, Mapping) else None
    except _READ_ERRORS as error:
        reason = 'there is no such file' if not file.is_file() else f'{type(error).__name__}: {error}'
        if isinstance(error, pickle.UnpicklingError):
            reason = 'UnpicklingError, it holds more than tensors and plain values, which would have to be executed'
        raise UnloadableModelError(
            f'{file} cannot be read: {reason}. Give a checkpoint of train.py, or a state dict.'
        ) from error
    return state_dict, dict(vars(options)) if isinstance(options, Namespace) else {}


def _is_zip(file: Path) -> bool:
    with file.open('rb') as stream:
        return stream.read(4) == b'PK\x03\x04'


def _base_row(arch: str, name: str, *, required: bool) -> Checkpoint:
    row = CHECKPOINTS.get(name)
    if row is not None and row.arch == arch:
        return row
    rows = of_arch(arch)
    if not rows:
        raise UnknownModelError(f'timm_sk has no architecture "{arch}"; `timm-sk list` shows all.')
    if required:
        raise UnknownModelError(f'"{name}" is no row of {arch}: name one of {", ".join(row.name for row in rows)}.')
    return rows[0]


def _row(
    start: Checkpoint,
    tag: str,
    state_dict: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    label_names: tuple[str, ...] | None,
    licence: str | None,
    origin: str | None,
) -> Checkpoint:
    """The facts of the fine-tuned weights, from the file and the options of `train.py`."""
    num_classes = _shape(state_dict, f'{start.classifier}.weight', 2)[0]
    channels = _shape(state_dict, f'{start.first_conv}.weight', 4)[1]
    height, width = start.input_size[1:]
    if options.get('input_size'):
        channels, height, width = options['input_size']
    elif options.get('img_size'):
        height = width = options['img_size']
    changed: dict[str, Any] = {key: options[key] for key in _PREPROCESSING if options.get(key) is not None}
    changed = {key: tuple(fact) if isinstance(fact, list) else fact for key, fact in changed.items()}
    return fine_tuned_row(
        start,
        tag,
        num_classes=num_classes,
        input_size=(channels, height, width),
        label_names=label_names,
        licence=licence,
        origin=origin,
        **changed,
    )


def _shape(state_dict: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    tensor = state_dict.get(key)
    if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
        raise MismatchedCheckpointError(
            f'The checkpoint has no tensor {key} of {dimensions} dimensions, which the architecture has: '
            'name the architecture that was trained.'
        )
    return tensor.shape
