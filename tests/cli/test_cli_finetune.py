"""`timm-sk finetune`: options, output and errors."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from finetune_runs import PATIENCE, draw_folder, read_last, small
from rich.console import Console
from safetensors.torch import load_file
from subprocesses import ROOT, run_python
from typer.testing import CliRunner

from timm_sk.cli import app
from timm_sk.cli.finetune import step_report
from timm_sk.finetune import extract
from timm_sk.finetune.run_checkpoint import LAST
from timm_sk.finetune.train_state import TrainState

MODEL = ['--model', 'sknet_atto.digits']
QUICK = ['--epochs', '1', '--workers', '0', '--device', 'cpu', '--batch-size', '8']


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp('data'))


def test_precedence_of_options_file_and_defaults(tmp_path: Path) -> None:
    (tmp_path / 'mine.yaml').write_text(
        'lr: 2e-3\nsmoothing: 0.2\nmodel: sknet_atto\ndecay_milestones: [3, 5]\nsynthetic: 32\n'
    )
    arguments = ['finetune', '--config', str(tmp_path / 'mine.yaml'), '--output', str(tmp_path / 'run'), *QUICK]
    result = CliRunner().invoke(app, [*arguments, '--smoothing', '0', '--scale', '0.5', '1'])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / 'run' / 'export')
    settings = read_last(tmp_path / 'run')['config']
    expected = dict(lr=2e-3, smoothing=0.0, decay_milestones=[3, 5], scale=[0.5, 1.0], momentum=0.9, batch_size=8)
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'No model: name one with --model, such as skresnet34, or sknet17_1x32d.cifar10, which ships with'),
        ([*MODEL, '--lr', '-1'], 'lr must be above 0'),
        ([*MODEL, '--config', 'sknet51'], 'sknet51: neither a file nor a recipe. There are: cifar10, digits,'),
        ([*MODEL, '--resume', 'last.pt', '--synthetic', '32'], 'resume must be "auto"'),
        ([*MODEL, '--sync-bn', '--synthetic', '32'], '--sync-bn needs CUDA'),
        (['--model', 'skresnet43'], 'There is no model "skresnet43". Nearest: skresnet34, '),
        ([*MODEL, '--synthetic', '32', '--opt', 'adamm'], 'Nearest: adam, '),
        ([*MODEL, '--synthetic', '32', '--sched', 'cosin'], "Unknown scheduler 'cosin'. Nearest: cosine."),
        ([*MODEL, '--synthetic', '32', '--initial-checkpoint', 'gone.pt'], 'No such file: gone.pt.'),
        ([*MODEL, 'https://a.b/c'], 'https://a.b/c: addresses are not supported. Download the file, and name it.'),
        ([*MODEL, 'nowhere'], 'nowhere: no such folder or tar'),
    ],
)
def test_errors_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['finetune', *arguments, *QUICK, '--output', str(tmp_path / 'run')])
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / 'run').exists()


def test_option_against_no_aug() -> None:
    helped = CliRunner().invoke(app, ['finetune', '--help'], env={'COLUMNS': '200'}).output
    assert ('--no-aug' in helped, '--no-no-' in helped) == (True, False)


@pytest.mark.deep
def test_ctrl_c(tmp_path: Path, data: Path) -> None:
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
    assert 'Resume with the same command and --resume auto.' in messages
    assert 'Traceback' not in messages
    assert read_last(tmp_path / 'run')['progress']['updates'] > 0


@pytest.mark.deep
def test_synthetic(tmp_path: Path) -> None:
    arguments = ['-m', 'timm_sk', 'finetune', '--synthetic', '64', '--output', 'run', *MODEL, *QUICK]
    done = run_python(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'run/export\n'
    assert 'epoch 1/1: loss ' in done.stderr
    again = run_python(*arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.startswith('timm-sk: run is not empty: resume the run in it with --resume auto')


def test_features(tmp_path: Path, data: Path) -> None:
    single = tmp_path / 'single'
    (single / 'ring').mkdir(parents=True)
    shutil.copy(next((data / 'train' / 'ring').iterdir()), single / 'ring')
    counts, embeddings = [], []
    for source in (data, data / 'validation', single):
        folder = tmp_path / f'features-{source.name}'
        extract(small(source, tmp_path, features=str(folder)))
        indices = {path.parent.name: json.loads(path.read_text()) for path in folder.glob('*/index.json')}
        counts.append({name: index['count'] for name, index in indices.items()})
        last = sorted(indices)[-1]
        embeddings.append(load_file(next((folder / last).glob('*.safetensors')))['embeddings'])
    assert counts == [{'train': 48, 'validation': 40}, {'all': 40}, {'all': 1}]
    assert torch.equal(embeddings[0], embeddings[1])


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Console:
    """Standard error: a terminal or not."""
    console = Console(file=io.StringIO(), width=100, force_terminal=request.param, color_system=None)
    monkeypatch.setattr('timm_sk.console.err', console)
    return console


METRICS = dict(loss=0.51234, top1=87.5, images_per_s=1234.4)


def new_state(epoch: int, epochs: int) -> TrainState:
    return cast(TrainState, SimpleNamespace(epochs=epochs, progress=SimpleNamespace(epoch=epoch)))


@pytest.mark.parametrize('console', [False], indirect=True)
def test_step_lines(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    with step_report() as on_step:
        for step in range(3, 11):
            now += 13
            on_step(new_state(1, 20), step, 10, METRICS)
    assert console.file.getvalue().splitlines() == [
        'epoch 2/20, step 6/10: loss 0.5123, top-1 87.50 %, 1,234 images/s, 0:52 left',
        'epoch 2/20, step 9/10: loss 0.5123, top-1 87.50 %, 1,234 images/s, 0:13 left',
    ]


@pytest.mark.parametrize('error', [None, KeyboardInterrupt])
@pytest.mark.parametrize('console', [True], indirect=True)
def test_progress_bar(console: Console, error: type[BaseException] | None) -> None:
    with contextlib.suppress(KeyboardInterrupt), step_report() as on_step:
        on_step(new_state(0, 3), 2, 4, METRICS)
        if error:
            raise error
    shown = console.file.getvalue()
    assert 'epoch 1/3' in shown
    assert '2/4 loss 0.5123, top-1 87.50 %, 1,234 images/s' in shown
    assert max(len(line.split('\x1b')[0]) for line in shown.splitlines()) <= 100
    assert shown.rstrip('\r\n').endswith('\x1b[2K')  # the line is erased
