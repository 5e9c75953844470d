"""Exporting a fine-tuned model's checkpoint file as a folder that is ready for the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..atomic_io import atomic_dir, require_empty_dir
from ..checkpoints import CHECKPOINTS, Checkpoint, of_arch
from ..checkpoints.rows import PREPROCESSING
from ..errors import MismatchedCheckpointError, UnknownModelError, UnloadableModelError, nearest
from ..pretrained import load_checked, read_training_checkpoint
from .hub_folder import MAX_SIDE, fine_tuned_row, recipe_settings, require_tag, write_folder
from .licences import LICENCE_RULE, is_licence


def package_checkpoint(
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
    """Write the folder of a fine-tuned model: weights, config, golden file, card, and recipe if the file has one.

    Args:
        file: Checkpoint of timm's `train.py`, or a state dict, as safetensors or PyTorch's; EMA weights are preferred.
        arch: Architecture; its keys and shapes must be those of the file.
        tag: Tag of the weights.
        out: New or empty folder; `arch.tag` in the working directory if None.
        label_names: Names of the classes in order.
        licence: SPDX identifier of the weights' licence; 'not established' in the card if None.
        origin: Author of the weights.
        base: `arch.tag` of the row whose input size and preprocessing the training used; if None, the one that
            `train.py` recorded, else the architecture's default.

    Returns:
        The folder.

    Raises:
        UnknownModelError: If there is no such architecture, or no such row of it.
        UnreadableCheckpointError, UnloadableModelError: If the file cannot be read, or has invalid options.
        MismatchedCheckpointError: If its keys or shapes are not the architecture's.
        ValueError: If tag or licence are invalid, the folder is not empty, or the number of label names is wrong.
    """
    require_tag(tag)
    if licence is not None and not is_licence(licence):
        raise ValueError(f'Invalid licence {licence!r}: expected {LICENCE_RULE}.')
    folder = out or Path(f'{arch}.{tag}')
    require_empty_dir(folder)
    state_dict, options = read_training_checkpoint(file, use_ema=True)
    _check_options(options, file)
    start = _base_row(arch, base or str(options.get('model') or ''), required=base is not None)
    preprocessing = {key: options[key] for key in PREPROCESSING if options.get(key) is not None}
    num_classes = _shape(state_dict, f'{start.classifier}.weight', 2)[0]
    channels = _shape(state_dict, f'{start.first_conv}.weight', 4)[1]
    side = options.get('img_size')
    height_and_width = (side, side) if side else start.input_size[1:]
    row = fine_tuned_row(
        start,
        tag,
        num_classes=num_classes,
        input_size=tuple(options.get('input_size') or (channels, *height_and_width)),
        label_names=label_names,
        licence=licence,
        origin=origin,
        **{key: tuple(value) if isinstance(value, list) else value for key, value in preprocessing.items()},
    )
    model = timm.create_model(arch, num_classes=row.num_classes, in_chans=row.input_size[0]).eval()
    load_checked(model, state_dict)
    base_model = start.hub_id if options.get('pretrained') else None
    with atomic_dir(folder) as written:
        write_folder(written, model, row, settings=recipe_settings(options), base_model=base_model)
    return folder


def _check_options(options: Mapping[str, Any], file: Path) -> None:
    """Check the options of `train.py` that decide how large inputs are, and that the config gets.

    Raises:
        UnloadableModelError: If one has another type than train.py gives it, or is too large.
    """
    for name in ('img_size', 'input_size', *PREPROCESSING):
        value = options.get(name)
        items = value if isinstance(value, list | tuple) else [value]
        if name in ('img_size', 'input_size'):
            is_valid = len(items) == (1 if name == 'img_size' else 3)
            is_valid &= all(type(item) is int and 0 < item <= MAX_SIDE for item in items)
        else:
            is_valid = all(isinstance(item, str if name == 'interpolation' else float | int) for item in items)
        if not (value is None or is_valid):
            raise UnloadableModelError(f'{file} has an invalid option {name}: {value!r:.80}.')


def _base_row(arch: str, name: str, *, required: bool) -> Checkpoint:
    row = CHECKPOINTS.get(name)
    if row is not None and row.arch == arch:
        return row
    rows = of_arch(arch)
    if not rows:
        near = nearest(arch, (row.arch for row in CHECKPOINTS.values()))
        raise UnknownModelError(f'timm_sk has no architecture "{arch}".{near} `timm-sk list` shows all.')
    if required:
        names = ', '.join(row.name for row in rows)
        raise UnknownModelError(f'Unknown checkpoint "{name}" of {arch}: expected one of {names}.')
    return rows[0]


def _shape(state_dict: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    tensor = state_dict.get(key)
    if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
        raise MismatchedCheckpointError(
            f'The checkpoint has no tensor {key} of {dimensions} dimensions, which the architecture has: '
            'name the architecture that was trained.'
        )
    return tensor.shape
