"""Fine-tuning runs, in processes that can be killed: forks of one that has imported everything."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_data import drawn, write_folder
from subprocesses import free_port
from torch import Tensor

from timm_sk import shapes
from timm_sk.finetune import Config, Stopped, finetune, loop
from timm_sk.finetune.run_checkpoint import BEST, LAST, read

PATIENCE = 120  # seconds
CLOCK = {'seconds', 'waiting', 'images_per_s', 'wait_share'}  # names of durations
DISK = 0.05  # seconds, so that some kills interrupt the writing of a checkpoint
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(['timm_sk.finetune.run', 'torchmetrics', 'matplotlib.figure'])


def draw_folder(root: Path) -> Path:
    """A folder of drawn images in two parts."""
    for part, count, seed in (('train', 6, 1), ('validation', 5, 2)):
        write_folder(root / part, drawn(count, classes=shapes.CLASS_NAMES, seed=seed, size=32))
    return root


def small(data: Path, output: Path, **settings: Any) -> Config:
    """Settings of a run that takes seconds, with every kind of randomness and state."""
    usual: dict[str, Any] = dict(
        data=str(data),
        output=str(output),
        model='sknet_atto.shapes',
        epochs=3,
        warmup_epochs=1,
        batch_size=8,
        workers=0,
        drop=0.2,
        reprob=0.3,
        mixup=0.2,
        cutmix=0.3,
        model_ema=True,
        save_every=1,
        device='cpu',
        aa='rand-m5-mstd0.5',
    )
    return Config(**usual | settings)


def run_epochs(config: Config, epochs: int) -> None:
    """Stop a run after some epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, 'is_asked_to_stop', lambda run: run.state.progress.epoch == epochs)
        with pytest.raises(Stopped):
            finetune(config)


def read_last(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return read(folder / LAST)


def state_of(folder: Path) -> dict[str, Any]:
    """The content of both checkpoints of a run by name, without settings and durations."""
    return {
        name: value
        for file in (LAST, BEST)
        for name, value in flat(torch.load(folder / file, weights_only=True), file)
        if not name.startswith(f'{file}/config/') and name.rpartition('/')[2] not in CLOCK
    }


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors (as their type and numbers), numbers and texts of nested containers by path."""
    if isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f'{name}/{key}')
    else:
        yield name, (value.dtype, value.tolist()) if isinstance(value, Tensor) else value


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two runs ended with the same bits."""
    assert found.keys() == expected.keys()
    differing = [name for name, value in expected.items() if found[name] != value]
    assert not differing, differing[:5]


def start_ranks(config: Config, count: int = 1, *, disk: float = 0) -> list[Any]:
    """Start a run in a process per rank; `disk` is the time in seconds that a file takes to reach the disk."""
    port = free_port()
    ranks = [_FORKS.Process(target=be_rank, args=(config, rank, count, port, disk)) for rank in range(count)]
    for process in ranks:
        process.start()
    return ranks


def join(ranks: list[Any]) -> list[int | None]:
    """Wait for processes; returns their exit codes."""
    for process in ranks:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in ranks]


def run_ranks(config: Config, count: int = 1) -> list[int | None]:
    """Run in a process per rank; returns the exit codes."""
    return join(start_ranks(config, count))


def kill_at(config: Config, step: int, count: int = 1, *, delay: float = 0) -> None:
    """Run in a process per rank, and kill all some seconds after the checkpoint of a step."""
    ranks = start_ranks(config, count, disk=DISK)
    wait_for_step(Path(config.output or ''), step)
    time.sleep(delay)
    for process in ranks:
        process.kill()
    assert {*join(ranks)} == {-signal.SIGKILL}


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a run has saved a checkpoint at a step or later."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (folder / LAST).exists() and torch.load(folder / LAST, weights_only=True)['progress']['updates'] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError(f'{folder} has not reached step {step}')


def be_rank(config: Config, rank: int, count: int, port: int, disk: float) -> None:
    """Be one rank of a run."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    reach_disk = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(disk)
        reach_disk(descriptor)

    os.fsync = slow_fsync
    finetune(config)
