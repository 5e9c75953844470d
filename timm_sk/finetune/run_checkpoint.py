"""Checkpoints of a run: written whole or not at all, and read without executing anything."""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from ..atomic_io import whole_file
from ..distributed import DistributedContext
from ..errors import TimmSkError
from .config import MACHINE, RUN, Config
from .progress import Progress
from .train_state import Trainee

LAST, BEST = 'last.pt', 'best.pt'
_MAY_CHANGE = {'early_stopping', 'max_bad_images'}  # beside what says where and on what a run runs
_MAY_NOT_CHANGE = {'seed', 'amp', 'amp_dtype', 'sync_bn'}  # which change what is computed


class ResumeError(TimmSkError):
    """Raised when a run cannot go on from its checkpoint: damaged, or of a run with other settings or data."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, and rename it when it is complete.

    Raises:
        OSError: If it cannot be written; what stood there before is whole.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(
            f'{path} cannot be written: {error.strerror or error}. The one before it is whole: make room, and go on '
            'with --resume auto.'
        ) from error


def save(
    folder: Path, trainee: Trainee, progress: Progress, config: Config, context: DistributedContext, *, data: str
) -> None:
    """Write a run's checkpoint.

    Args:
        folder: The run's.
        trainee: What trains.
        progress: Where it is.
        config: The settings.
        context: The processes; all take part, the first one writes.
        data: What tells this data from other.

    Raises:
        ValueError: If a weight is not finite.
        OSError: If it cannot be written.
    """
    together = progress.as_saved(context)
    if not context.is_main:
        return
    require_finite(trainee.model.state_dict(), progress)
    content = dict(
        state_dict=trainee.model.state_dict(),
        state_dict_ema=None if trainee.ema is None else trainee.ema.module.state_dict(),
        optimizer=trainee.optimizer.state_dict(),
        scheduler=None if trainee.scheduler is None else _state_of(trainee.scheduler),
        scaler=trainee.scaler.state_dict(),
        config=config.as_dict(),
        progress=together,
        data=data,
    )
    write_atomically(folder / LAST, _serialized({key: value for key, value in content.items() if value is not None}))


def save_best(folder: Path, trainee: Trainee, config: Config, metrics: dict[str, float]) -> None:
    """Write the weights that are best so far, as timm and `timm-sk weights export` read them."""
    content = dict(state_dict=trainee.judged.state_dict(), epoch=int(metrics['epoch']), metrics=metrics)
    write_atomically(folder / BEST, _serialized(content | dict(config=config.as_dict(), arch=config.model)))


def _serialized(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def restore(folder: Path, trainee: Trainee, config: Config, context: DistributedContext, *, data: str) -> Progress:
    """Bring a run to where its last checkpoint was.

    Args:
        folder: The run's.
        trainee: What trains, as it began.
        config: The settings.
        context: The processes.
        data: What tells this data from other.

    Returns:
        Where it is.

    Raises:
        ResumeError: If the checkpoint cannot be read, or is of other settings or data.
    """
    content = read(folder / LAST, torch.device('cpu'))  # whence each part goes to where it is used
    try:
        _require_same(content['config'], config)
        if content['data'] != data:
            raise ResumeError(f'{folder} was trained on other data ({content["data"]}; this is {data}).')
        trainee.model.load_state_dict(content['state_dict'])
        if trainee.ema is not None:
            trainee.ema.module.load_state_dict(content['state_dict_ema'])
        trainee.optimizer.load_state_dict(content['optimizer'])
        if trainee.scheduler is not None:
            _load_state(trainee.scheduler, content['scheduler'])
        trainee.scaler.load_state_dict(content['scaler'])
        progress = Progress(**content['progress'])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ResumeError(f'{folder / LAST} is not a checkpoint of this run: {error}.') from error
    if not context.is_main:  # they are sums over all
        progress.forget_sums()
    return progress


def _state_of(scheduler: Scheduler) -> dict[str, Any]:
    """A scheduler's state; of timm's for plateaus also how long it has waited, which timm leaves out."""
    state = scheduler.state_dict()
    return state | dict(plateau=scheduler.lr_scheduler.state_dict()) if _waits(scheduler) else state


def _load_state(scheduler: Scheduler, state: dict[str, Any]) -> None:
    scheduler.load_state_dict(state)
    if _waits(scheduler):
        scheduler.lr_scheduler.load_state_dict(state['plateau'])


def _waits(scheduler: Scheduler) -> bool:
    return isinstance(scheduler, PlateauLRScheduler)


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        ResumeError: If it cannot be read.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ResumeError(f'{path} cannot be read: {str(error).splitlines()[0]}') from error
    if not isinstance(content, dict):
        raise ResumeError(f'{path} is not a checkpoint of a run.')
    return content


def require_finite(state_dict: dict[str, Tensor], progress: Progress) -> None:
    """Check that no weight is infinite or no number.

    Raises:
        ValueError: If one is.
    """
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f'{name} is not finite after step {progress.updates}: nothing was saved. {what_to_try()}')


def what_to_try() -> str:
    """What helps where training diverges."""
    return 'Try a lower --lr, --clip-grad 1, more --warmup-epochs or no --amp, with another --output.'


def _require_same(before: dict[str, Any], config: Config) -> None:
    now = config.as_dict()
    free = {item.name for item in dataclasses.fields(Config) if item.metadata['group'] in (RUN, MACHINE)}
    binding = (set(now) - free - _MAY_CHANGE) | _MAY_NOT_CHANGE
    changed = sorted(name for name in binding if before.get(name) != now[name])
    if changed:
        listed = ', '.join(f'{name} was {before.get(name)!r} and is {now[name]!r}' for name in changed[:3])
        raise ResumeError(f'The run has other settings: {listed}. Go on with those, or choose another --output.')
