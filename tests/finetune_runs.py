"""Runs of fine-tuning in processes of their own, forks of one that has imported everything; they can be killed."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from subprocesses import free_port
from torch import Tensor

from timm_sk import shapes
from timm_sk.finetune import Config, finetune
from timm_sk.finetune.run_checkpoint import BEST, LAST, read

PATIENCE = 120  # seconds
CLOCK = {'seconds', 'waiting', 'images_per_s', 'wait_share'}  # names of what the clock says
DISK = 0.05  # seconds, so that kills strike as a checkpoint is written, too
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(['timm_sk.finetune.run', 'torchmetrics', 'matplotlib.figure'])


def draw_folder(root: Path, *, train: int = 48, validation: int = 40, size: int = 32) -> Path:
    """A folder of drawn images, one folder per class, in two parts."""
    for part, count, seed in (('train', train, 1), ('validation', validation, 2)):
        images, labels = shapes.draw(count, seed=seed, size=size)
        for name in shapes.CLASS_NAMES:
            (root / part / name).mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(root / part / shapes.CLASS_NAMES[label] / f'{index:04}.png')
    return root


def small(data: Path, output: Path, **settings: Any) -> Config:
    """Settings of a run that takes seconds and draws on every kind of randomness and state."""
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


def read_last(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return read(folder / LAST, torch.device('cpu'))


def state_of(folder: Path) -> dict[str, Any]:
    """All that the two checkpoints of a run hold, by name, but the settings and what the clock says."""
    return {
        name: value
        for file in (LAST, BEST)
        for name, value in flat(torch.load(folder / file, weights_only=True), file)
        if not name.startswith(f'{file}/config/') and name.rpartition('/')[2] not in CLOCK
    }


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors, numbers and texts, however deep they lie, with the way to each."""
    if isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f'{name}/{key}')
    else:
        yield name, value


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two runs ended with the same bits."""
    assert found.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not is_same(value, found[name])]
    assert not differing, differing[:5]


def is_same(value: Any, other: Any) -> bool:
    return torch.equal(value, other) if isinstance(value, Tensor) else bool(value == other)


def run_ranks(config: Config, count: int = 1, *, kill_after: float | None = None, disk: float = 0) -> list[int | None]:
    """Run in as many processes as there are ranks, and kill all of them after a time if it is given.

    Args:
        config: The settings.
        count: Processes.
        kill_after: Seconds.
        disk: Seconds that a file takes to reach the disk.

    Returns:
        Their exit codes; -9 for those that were killed.
    """
    port = free_port()
    ranks = [_FORKS.Process(target=be_rank, args=(config, rank, count, port, disk)) for rank in range(count)]
    for process in ranks:
        process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        for process in random.sample(ranks, count):
            process.kill()
    for process in ranks:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in ranks]


def kill_at(config: Config, step: int) -> int | None:
    """Run in one process, and kill it when it has saved itself at a step or later; gives its exit code."""
    process = _FORKS.Process(target=be_rank, args=(config, 0, 1, free_port(), DISK))
    process.start()
    wait_for_step(Path(config.output or ''), step)
    process.kill()
    process.join(PATIENCE)
    return process.exitcode


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a run has saved itself at a step or later."""
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


def kill_and_resume(config: Config, count: int, kills: int, seconds: float, stream: random.Random) -> list[str]:
    """Run to the end through kills at random moments; says where each of them struck.

    Args:
        config: The settings; the folder begins empty.
        count: Processes.
        kills: How many kills.
        seconds: What a whole run takes.
        stream: Of the moments.
    """
    folder = Path(config.output or '')
    shutil.rmtree(folder, ignore_errors=True)
    moments: list[str] = []
    while len(moments) < kills:
        after = stream.uniform(0.05, 1) * seconds
        codes = run_ranks(config.changed(resume='auto'), count, kill_after=after, disk=DISK)
        assert {*codes} <= {0, -signal.SIGKILL}, codes
        if 0 in codes:  # the kill came too late: begin again
            shutil.rmtree(folder)
        else:
            moments.append(describe(folder))
    assert run_ranks(config.changed(resume='auto'), count) == [0] * count
    return moments


def describe(folder: Path) -> str:
    """Where a run was when it was killed."""
    writing = ', while a checkpoint was written' if [*folder.glob('*.partial')] else ''
    if not (folder / LAST).exists():
        return 'before the first checkpoint' + writing
    progress = torch.load(folder / LAST, weights_only=True)['progress']
    return f'epoch {progress["epoch"]}, step {progress["updates"]}' + writing
