"""`timm-sk finetune` as a person types it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import PATIENCE, draw_folder, require_equal, small, state_of
from safetensors.torch import load_file
from subprocesses import ROOT, run_python
from typer.testing import CliRunner

from timm_sk.cli import app
from timm_sk.finetune import Config, extract, finetune
from timm_sk.finetune.run_checkpoint import LAST, read

QUICK = ['--epochs', '1', '--workers', '0', '--device', 'cpu', '--batch-size', '8']


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp('data'))


def settings_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = read(folder / LAST, torch.device('cpu'))['config']
    return found


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / 'mine.yaml').write_text('lr: 2e-3\nsmoothing: 0.2\ndecay_milestones: [3, 5]\nsynthetic: 32\n')
    arguments = ['finetune', '--config', str(tmp_path / 'mine.yaml'), '--output', str(tmp_path / 'run'), *QUICK]
    result = CliRunner().invoke(app, [*arguments, '--smoothing', '0', '--scale', '0.5', '1'])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / 'run' / 'export')
    settings = settings_of(tmp_path / 'run')
    expected = dict(lr=2e-3, smoothing=0.0, decay_milestones=[3, 5], scale=[0.5, 1.0], momentum=0.9, batch_size=8)
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--lr', '-1'], 'lr must be above 0'),
        (['--config', 'sknet51'], 'sknet51: neither a file nor a recipe. There are: digits, finetune,'),
        (['--resume', 'last.pt', '--synthetic', '32'], 'resume must be "auto"'),
        (['--sync-bn', '--synthetic', '32'], '--sync-bn needs CUDA'),
        (['nowhere'], 'nowhere: no such folder or tar'),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['finetune', *arguments, *QUICK, '--output', str(tmp_path / 'run')])
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.deep
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, data: Path) -> None:
    command = [sys.executable, '-m', 'timm_sk', 'finetune', str(data), '--output', str(tmp_path / 'run'), *QUICK]
    command += ['--model', 'sknet_atto.shapes', '--epochs', '300', '--save-every', '1', '--workers', '1']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(
        command, env=environment, cwd='/', stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / 'run' / LAST).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the loading process too
        messages = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    assert process.returncode == 130, messages
    assert 'Go on with the same command and --resume auto.' in messages
    assert 'Traceback' not in messages
    assert read(tmp_path / 'run' / LAST, torch.device('cpu'))['progress']['updates'] > 0


@pytest.mark.deep
def test_a_trial_run(tmp_path: Path) -> None:
    arguments = ['-m', 'timm_sk', 'finetune', '--synthetic', '64', '--output', 'run', *QUICK]
    done = run_python(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'run/export\n'
    assert 'epoch 1/1: loss ' in done.stderr
    again = run_python(*arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.startswith('timm-sk: run is not empty: go on with the run in it by --resume auto')


def test_features_of_both_parts_and_of_a_whole(tmp_path: Path, data: Path) -> None:
    extract(small(data, tmp_path, features=str(tmp_path / 'both')))
    counts = {
        path.parent.name: json.loads(path.read_text())['count'] for path in (tmp_path / 'both').glob('*/index.json')
    }
    assert counts == {'train': 48, 'validation': 40}
    extract(small(data / 'validation', tmp_path, features=str(tmp_path / 'one')))
    (index,) = (tmp_path / 'one').glob('*/index.json')
    assert json.loads(index.read_text())['count'] == 40
    alone, part = (
        load_file(next(folder.glob('*.safetensors'))) for folder in (index.parent, tmp_path / 'both/validation')
    )
    assert torch.equal(alone['embeddings'], part['embeddings'])


def test_features_of_a_folder_that_cannot_be_cut(tmp_path: Path, data: Path) -> None:
    (tmp_path / 'data' / 'ring').mkdir(parents=True)
    image = next((data / 'train' / 'ring').iterdir())
    shutil.copy(image, tmp_path / 'data' / 'ring')
    extract(small(tmp_path / 'data', tmp_path, features=str(tmp_path / 'features')))
    index = json.loads((tmp_path / 'features' / 'all' / 'index.json').read_text())
    assert index['count'] == 1


def learnt(state: dict[str, Any]) -> dict[str, Any]:
    parts = ('state_dict', 'state_dict_ema', 'optimizer')
    return {
        name: value
        for name, value in state.items()
        if name.split('/')[1] in parts and 'running' not in name and 'tracked' not in name
    }


@pytest.mark.deep
@pytest.mark.parametrize(
    'settings',
    [dict(amp=True), dict(grad_checkpointing=True), dict(sched='plateau', sched_on_updates=False), dict(bce_loss=True)],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_to_train(settings: dict[str, object], data: Path, tmp_path: Path) -> None:
    plain = finetune(small(data, tmp_path / 'plain', epochs=1, save_every=0, drop=None))
    other = finetune(small(data, tmp_path / 'other', epochs=1, save_every=0, drop=None, **settings))
    assert other.metrics['train_loss'] > 0
    if 'grad_checkpointing' in settings:  # the same gradients; running statistics see each batch twice
        require_equal(*(learnt(state_of(run.folder)) for run in (other, plain)))
    else:
        before, after = (read(run.folder / LAST, torch.device('cpu'))['state_dict'] for run in (plain, other))
        assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_config_of_python_is_checked() -> None:
    with pytest.raises(ValueError, match='epochs must be above 0, got 0'):
        Config(epochs=0)
