"""Real torchrun: a killed worker, two agents, and errors in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_runs import PATIENCE, draw_folder, require_equal, run_ranks, small, state_of, wait_for_step
from subprocesses import ROOT, free_port

from timm_sk.data import TrainBatches, open_dataset
from timm_sk.distributed import DistributedContext
from timm_sk.finetune import Config

pytestmark = pytest.mark.deep


def torchrun(config: Config, folder: Path, *arguments: str) -> 'subprocess.Popen[str]':
    """Start torchrun on a run's settings; its output goes to a file beside the run."""
    settings = folder / 'settings.yaml'
    settings.write_text(
        ''.join(f'{name}: {value!r}\n' for name, value in config.as_dict().items() if value is not None)
    )
    command = [sys.executable, '-m', 'torch.distributed.run', *arguments, '-m', 'timm_sk', 'finetune']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    log = (folder / f'log{len(list(folder.glob("log*")))}').open('w')
    return subprocess.Popen(
        [*command, '--config', str(settings)], env=environment, cwd='/', stdout=log, stderr=log, text=True
    )


def finish(*started: 'subprocess.Popen[str]') -> list[int]:
    try:
        return [process.wait(PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()


def workers_of(agent: int) -> list[int]:
    """The processes that an agent of torchrun has started."""
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(agent)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp('whole')
    config = small(draw_folder(folder / 'data'), folder / 'run', batch_size=4, epochs=1)
    assert run_ranks(config, 2) == [0, 0]
    return folder / 'run', config


def test_restart_after_killed_worker(tmp_path: Path, whole: tuple[Path, Config]) -> None:
    config = whole[1].changed(output=str(tmp_path / 'run'))
    agent = torchrun(config, tmp_path, '--standalone', '--nproc-per-node=2', '--max-restarts=1')
    wait_for_step(tmp_path / 'run', 2)
    os.kill(workers_of(agent.pid)[-1], signal.SIGKILL)

    assert finish(agent) == [0], (tmp_path / 'log0').read_text()[:3000]
    assert 'Resuming after' in (tmp_path / 'log0').read_text()
    require_equal(state_of(tmp_path / 'run'), state_of(whole[0]))


def test_two_agents(tmp_path: Path, whole: tuple[Path, Config]) -> None:
    config = whole[1].changed(output=str(tmp_path / 'run'))
    meeting = ['--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{free_port()}', '--rdzv-id=meeting']
    agents = [torchrun(config, tmp_path, '--nnodes=2', '--nproc-per-node=1', *meeting) for _ in range(2)]

    assert finish(*agents) == [0, 0], (tmp_path / 'log0').read_text()[:3000]
    require_equal(state_of(tmp_path / 'run'), state_of(whole[0]))


def test_error_of_one_process_is_logged_once(tmp_path: Path, whole: tuple[Path, Config]) -> None:
    """An unreadable image, among those of the second process."""
    config = whole[1].changed(data=str(tmp_path / 'data'), output=str(tmp_path / 'run'))
    images = open_dataset(str(draw_folder(tmp_path / 'data')), split='train')
    order = TrainBatches(len(images), config.batch_size, DistributedContext(rank=1, size=2), config.seed)
    victim = Path(images.name(next(iter(order))[0].image))
    victim.write_bytes(victim.read_bytes()[:60])

    assert finish(torchrun(config, tmp_path, '--standalone', '--nproc-per-node=2')) == [1]
    log = (tmp_path / 'log0').read_text()
    lines = [line for line in log.splitlines() if line.startswith('timm-sk: ')]
    assert len(lines) == 1, log[:3000]
    assert f'1 image cannot be read, --max-bad-images allows 0: {victim}' in lines[0]
    assert log.count('Traceback') == 1, log[:3000]  # torchrun's own
