"""The folder and the checkpoints of a run: written atomically, and read without executing anything."""

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ..atomic_io import FORMAT_VERSION, atomic_write, leftovers
from ..distributed import DistributedContext
from ..errors import TimmSkError, UnreadableCheckpointError
from ..pretrained.readers import read_contents
from .config import MACHINE, RUN, Config, checked
from .saved_values import describe, require_like
from .train_state import TrainState

LAST, BEST, CONFIG = 'last.pt', 'best.pt', 'config.yaml'
CLAIM = '.run'  # marks the folder of a run; holds the id of the torchrun that started it
VERSION = 1  # of the checkpoints' format
WHAT_TO_TRY = 'Try a lower --lr, --clip-grad 1, more --warmup-epochs or no --amp, with another --output.'
_START_AGAIN = 'Remove it to start again, or choose another --output.'
_MAY_CHANGE = {'early_stopping', 'max_bad_images'}  # in addition to the groups RUN and MACHINE
_MAY_NOT_CHANGE = {'seed', 'amp', 'amp_dtype', 'sync_bn'}  # settings of these groups that change what is computed


class ResumeError(TimmSkError):
    """Raised when a run cannot resume: its checkpoint is damaged, or has other settings or data."""


def claim_folder(folder: Path, config: Config, *, restarted: bool) -> bool:
    """Create the folder of a run, or find a run in it to resume; returns whether there is one.

    Raises:
        ValueError: If the folder holds something else.
        OSError: If it cannot be written.
    """
    if config.resume not in (None, 'auto'):
        raise ValueError(f'resume must be "auto", got {config.resume!r}: name the folder of the run with --output.')
    exists = folder.exists()
    if exists and not folder.is_dir():
        raise ValueError(f'{folder} is a file: name a folder with --output.')
    launch, claim = os.environ.get('TORCHELASTIC_RUN_ID', ''), folder / CLAIM
    names = {path.name for path in {*folder.iterdir()} - {*leftovers(folder, CLAIM)}} if exists else set()
    if names and CLAIM not in names:
        raise ValueError(f'{folder} is not empty and holds no run: choose another --output.')
    resumes = config.resume == 'auto' or (restarted and bool(names) and claim.read_text() == launch)
    if not resumes and names - {CLAIM, CONFIG}:
        raise ValueError(f'{folder} is not empty: resume the run in it with --resume auto, or choose --output.')
    folder.mkdir(parents=True, exist_ok=True)
    _write(claim, launch.encode())
    for leftover in leftovers(folder):
        leftover.unlink()
    if resumes and (folder / LAST).exists():
        return True
    _write(folder / CONFIG, yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True).encode())
    return False


def save(folder: Path, state: TrainState, config: Config, context: DistributedContext, *, data: str) -> None:
    """Write the checkpoint of a run; all processes have to call this, the main one writes.

    Raises:
        ValueError: If a weight is not finite.
        OSError: If it cannot be written.
    """
    content = state.state_dict(context)
    if context.is_main:
        require_finite(content['state_dict'], state.progress.updates)
        _write(folder / LAST, _serialized(content, config, data=data))


def save_best(folder: Path, state: TrainState, config: Config, metrics: dict[str, float]) -> None:
    """Write the best weights so far, in the layout that timm and `timm-sk weights package` read.

    Raises:
        ValueError: If a weight is not finite.
        OSError: If it cannot be written.
    """
    weights = state.eval_model.state_dict()
    require_finite(weights, state.progress.updates)
    content = dict(state_dict=weights, epoch=int(metrics['epoch']), metrics=metrics)
    _write(folder / BEST, _serialized(content, config, arch=config.model))


def restore(
    folder: Path, state: TrainState, config: Config, context: DistributedContext, *, data: str, images_per_epoch: int
) -> None:
    """Load the last checkpoint of a run into the state of a new one.

    Raises:
        ResumeError: If the checkpoint cannot be read, or has other settings or data.
    """
    content = read(folder / LAST)
    try:
        _require_same_settings(content.get('config'), config)
        if content.get('data') != data:
            raise ResumeError(
                f'{folder} was trained on other data ({content.get("data")}; this is {data}). Modification times '
                'count: copy data with cp -p or rsync -a.'
            )
        state.load_state_dict(content, context, images_per_epoch)
    except ResumeError:
        raise
    except ValueError as error:
        reason = ' '.join(str(error).split()).rstrip('.')
        raise ResumeError(f'{folder / LAST} is not a checkpoint of this run: {reason}. {_START_AGAIN}') from error


def load_best(folder: Path, model: nn.Module) -> None:
    """Load the best weights of a run.

    Raises:
        ResumeError: If the checkpoint cannot be read, or is of another model.
    """
    weights = read(folder / BEST).get('state_dict')
    try:
        require_like(weights, model.state_dict(), 'state_dict')
    except ValueError as error:
        raise ResumeError(f'{folder / BEST} is not a checkpoint of this run: {error}. {_START_AGAIN}') from error
    model.load_state_dict(weights)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed, and only its format version is checked.

    Raises:
        ResumeError: If it cannot be read, or its format is unknown.
    """
    try:
        content = read_contents(path)
    except (OSError, UnreadableCheckpointError) as error:
        missing = 'no such file' if isinstance(error, FileNotFoundError) else None
        reason = missing or getattr(error, 'strerror', None) or getattr(error.__cause__, 'reason', error)
        raise ResumeError(f'{path} cannot be read: {reason}. {_START_AGAIN}') from error
    found = content.get(FORMAT_VERSION) if isinstance(content, dict) else None
    if found != VERSION:
        raise ResumeError(f'{path} has format version {found}, expected {VERSION}: choose another --output.')
    return content


def require_finite(state_dict: dict[str, Tensor], step: int) -> None:
    """Check that all weights are finite.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise ValueError(f'{name} is not finite after step {step}: nothing was saved. {WHAT_TO_TRY}')


def _require_same_settings(saved: Any, config: Config) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f'config is {describe(saved)}, expected a mapping')
    before, now = Config(**checked(saved, 'config')).as_dict(), config.as_dict()
    free = {item.name for item in dataclasses.fields(Config) if item.metadata['group'] in (RUN, MACHINE)}
    binding = (set(now) - free - _MAY_CHANGE) | _MAY_NOT_CHANGE
    changed = sorted(name for name in binding if before[name] != now[name])
    if changed:
        listed = ', '.join(f'{name} was {before[name]!r} and is {now[name]!r}' for name in changed[:3])
        raise ResumeError(f'The run has other settings: {listed}. Resume with those, or choose another --output.')


def _serialized(content: dict[str, Any], config: Config, **facts: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({FORMAT_VERSION: VERSION, **content, **facts, 'config': config.as_dict()}, buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(
            f'{path} cannot be written: {error.strerror or error}. The previous one is complete: free some space, and '
            'resume with --resume auto.'
        ) from error
