"""A run: its outputs, what interrupts it and how it resumes, and what is refused."""

import csv
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from finetune_runs import draw_folder, read_last, require_equal, run_epochs, small, state_of
from subprocesses import run_python

from timm_sk import shapes
from timm_sk.finetune import Config, Stopped, finetune, loop, read_settings
from timm_sk.finetune.run_checkpoint import CLAIM, LAST, ResumeError, claim_folder, read

EPOCHS = 2


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    torch.set_num_threads(1)  # as each test does
    folder = tmp_path_factory.mktemp('finished') / 'run'
    finetune(small(data, folder, epochs=EPOCHS))
    return folder


def patch_step(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Change the images of each step, given the state and the images."""
    step = loop.train_step

    def changed(state: Any, images: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return step(state, change(state, images), *arguments, **options)

    monkeypatch.setattr(loop, 'train_step', changed)


def test_outputs(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {'config.yaml', 'metrics.csv', 'curves.png', 'confusion.png', 'last.pt', 'best.pt', 'export'}
    rows = [*csv.DictReader((finished / 'metrics.csv').open())]
    assert [int(float(row['epoch'])) for row in rows] == [*range(EPOCHS)]
    assert all(0 <= float(row['wait_share']) <= 1 and float(row['images_per_s']) > 0 for row in rows)
    settings = yaml.safe_load((finished / 'config.yaml').read_text())
    assert Config(**read_settings(str(finished / 'config.yaml'))).as_dict() == settings
    progress = read_last(finished)['progress']
    assert progress['best']['val_top1'] == max(row['val_top1'] for row in progress['history'])


def test_exported_weights_are_the_best(finished: Path) -> None:
    model = timm.create_model(f'local-dir:{finished / "export"}', pretrained=True)
    best = read(finished / 'best.pt')['state_dict']
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg['label_names'] == [*shapes.CLASS_NAMES]


def test_resume_finished_run(finished: Path) -> None:
    before = state_of(finished)
    config = Config(**read_settings(str(finished / 'config.yaml')))
    finetune(config.changed(resume='auto'))
    require_equal(state_of(finished), before)


def test_existing_run_is_not_overwritten(finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, config = (finished / LAST).read_bytes(), small(data, finished, epochs=EPOCHS)
    message = r'is not empty: resume the run in it with --resume auto, or choose --output'
    with pytest.raises(ValueError, match=message):
        finetune(config)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    with pytest.raises(ValueError, match=message):  # a restart by another torchrun
        claim_folder(finished, config, restarted=True)
    assert (finished / LAST).read_bytes() == before


@pytest.mark.parametrize(
    ('settings', 'message'),
    [(dict(lr=0.1), 'lr was None and is 0.1'), (dict(amp=True), 'amp was False and is True')],
)
def test_resume_with_other_settings(finished: Path, data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ResumeError, match=f'other settings: {message}'):
        finetune(small(data, finished, epochs=EPOCHS, resume='auto', **settings))


@pytest.mark.parametrize('damage', ['cut off', 'format', 'no format'])
def test_resume_from_unreadable_checkpoint(finished: Path, data: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / CLAIM).touch()
    last = tmp_path / 'run' / LAST
    if damage == 'cut off':
        last.write_bytes(b'PK\x03\x04 cut off')
    else:
        content = read_last(finished) | dict(format_version=2)
        torch.save(content if damage == 'format' else {'state_dict': content['state_dict']}, last)
    found = '2' if damage == 'format' else 'None'
    message = r'last.pt cannot be read' if damage == 'cut off' else f'last.pt has format version {found}, expected 1'
    with pytest.raises(ResumeError, match=message) as error:
        finetune(small(data, tmp_path / 'run', resume='auto'))
    assert '\n' not in str(error.value)


@pytest.mark.deep
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stop_by_signal_and_resume(
    data: Path, tmp_path: Path, finished: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(state: object, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return images

    patch_step(monkeypatch, slowly)
    config = small(data, tmp_path / 'run', epochs=EPOCHS, save_every=0)
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))

    def wait_and_ask() -> None:
        while signal.getsignal(number) is before:
            time.sleep(0.01)
        timer.start()

    threading.Thread(target=wait_and_ask, daemon=True).start()
    with pytest.raises(Stopped, match=r'Stopped after epoch \d, step [1-9]'):
        finetune(config)
    assert signal.getsignal(number) is before
    finetune(config.changed(resume='auto'))
    require_equal(state_of(tmp_path / 'run'), state_of(finished))


def test_nan_loss(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_step(monkeypatch, lambda state, images: images * float('nan') if state.progress.updates == 3 else images)
    with pytest.raises(ValueError, match=r'The loss is nan at step 3, with lr 0.0\d+. Try a lower --lr, --clip-grad 1'):
        finetune(small(data, tmp_path / 'run'))
    saved = read_last(tmp_path / 'run')
    assert saved['progress']['updates'] == 3
    assert all(tensor.isfinite().all() for tensor in saved['state_dict'].values())


def test_infinite_weights(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'not finite after step|The loss is (nan|inf) at step'):
        finetune(small(data, tmp_path / 'run', lr=1e30, warmup_epochs=0, opt='sgd', mixup=0, cutmix=0))
    if (tmp_path / 'run' / LAST).exists():
        assert all(tensor.isfinite().all() for tensor in read_last(tmp_path / 'run')['state_dict'].values())


def test_unreadable_images(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / 'data')
    victim = next((data / 'train' / 'ring').iterdir())
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf'1 image cannot be read, --max-bad-images allows 0: .*{victim.name}'):
        finetune(small(data, tmp_path / 'strict', epochs=1, warmup_epochs=0))
    lines: list[str] = []
    finetune(small(data, tmp_path / 'lenient', epochs=1, warmup_epochs=0, max_bad_images=1), log=lines.append)
    (bad,) = read_last(tmp_path / 'lenient')['progress']['bad']
    assert victim.name in bad
    assert lines.count(f'skipped: {bad}') == 1


@pytest.mark.deep
def test_full_disk(data: Path, tmp_path: Path, finished: Path) -> None:
    """The kernel refuses files of a checkpoint's size to the process that resumes a run."""
    config = small(data, tmp_path / 'run', epochs=EPOCHS)
    run_epochs(config, 1)
    content = (tmp_path / 'run' / LAST).read_bytes()
    settings = {name: value for name, value in config.changed(resume='auto').as_dict().items() if value is not None}
    (tmp_path / 'settings.yaml').write_text(yaml.safe_dump(settings))
    full = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))'
    command = f'{full}; from timm_sk.cli import main; main()'
    done = run_python('-c', command, 'finetune', '--config', str(tmp_path / 'settings.yaml'), OMP_NUM_THREADS='1')
    assert (done.returncode, done.stdout) == (1, '')
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('timm-sk: ')]
    assert f'{LAST} cannot be written: File too large. The previous one is complete: free some space' in line
    assert 'Traceback' not in done.stderr
    assert (tmp_path / 'run' / LAST).read_bytes() == content
    assert not [*(tmp_path / 'run').glob('*.partial')]
    finetune(config.changed(resume='auto'))
    require_equal(state_of(tmp_path / 'run'), state_of(finished))


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    done = finetune(small(data, tmp_path / 'run', epochs=9, early_stopping=1, lr=1e-9, warmup_lr=1e-9, model_ema=False))
    assert len([*csv.DictReader((done.folder / 'metrics.csv').open())]) < 9


def test_invalid_settings_leave_no_folder(tmp_path: Path, data: Path) -> None:
    for settings, message in (
        (dict(data=''), 'No data: name a folder of images'),
        (dict(freeze='layer9'), r'freeze must be "head" or one of conv1, .*, fc, got \'layer9\''),
        (dict(num_classes=9), 'num_classes is 9'),
        (dict(amp=True, amp_dtype='float16'), 'float16 needs CUDA'),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(small(data, tmp_path / 'run').changed(**settings))
        assert not (tmp_path / 'run').exists()


@pytest.mark.deep
def test_resume_plateau_schedule(data: Path, tmp_path: Path) -> None:
    """Nothing improves, so the learning rate drops two epochs after the first."""
    settings: dict[str, Any] = dict(sched='plateau', patience_epochs=1, min_lr=0, lr=1e-6, model_ema=False)
    config = small(data, tmp_path / 'whole', epochs=4, warmup_epochs=0, save_every=0, **settings)
    finetune(config)
    stopped = config.changed(output=str(tmp_path / 'stopped'))
    run_epochs(stopped, 2)
    finetune(stopped.changed(resume='auto'))
    whole, resumed = (
        [row['lr'] for row in read_last(tmp_path / name)['progress']['history']] for name in ('whole', 'stopped')
    )
    assert whole[-1] < whole[0]
    assert whole == resumed
    require_equal(state_of(tmp_path / 'stopped'), state_of(tmp_path / 'whole'))


def test_linear_probe(data: Path, tmp_path: Path) -> None:
    done = finetune(small(data, tmp_path / 'run', epochs=1, warmup_epochs=0, linear_probe=True, model_ema=False))
    start = timm.create_model('sknet_atto.shapes', pretrained=True).state_dict()
    end = read_last(done.folder)['state_dict']
    assert {name for name in end if not torch.equal(end[name], start[name])} == {'fc.weight', 'fc.bias'}


def test_unusable_output(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'config.yaml').write_text('mine')
    (tmp_path / 'mine' / 'movie.1.2.partial').write_text('half')
    for output, settings, message in (
        ('file', {}, 'is a file: name a folder'),
        ('file/run', {}, 'Not a directory'),
        ('mine', {}, 'is not empty and holds no run: choose another --output'),
        ('mine', dict(resume='auto'), 'is not empty and holds no run: choose another --output'),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            finetune(small(data, tmp_path / output, **settings))
    assert (tmp_path / 'mine' / 'config.yaml').read_text() == 'mine'
    assert (tmp_path / 'mine' / 'movie.1.2.partial').read_text() == 'half'


@pytest.mark.deep
def test_seed_of_new_weights(data: Path, tmp_path: Path) -> None:
    runs = [
        finetune(small(data, tmp_path / name, epochs=1, lr=1e-30, warmup_lr=1e-30, pretrained=False, seed=seed))
        for name, seed in (('one', 1), ('again', 1), ('two', 2))
    ]
    one, again, two = (read_last(run.folder)['state_dict']['fc.weight'] for run in runs)
    assert torch.equal(one, again)
    assert not torch.allclose(one, two)


def learnt(folder: Path) -> dict[str, Any]:
    """Weights and optimizer of a run, without running statistics."""
    parts = ('state_dict', 'state_dict_ema', 'optimizer')
    return {
        name: value
        for name, value in state_of(folder).items()
        if name.split('/')[1] in parts and 'running' not in name and 'tracked' not in name
    }


@pytest.mark.deep
@pytest.mark.parametrize(
    'settings',
    [dict(amp=True), dict(grad_checkpointing=True), dict(sched='plateau', sched_on_updates=False), dict(bce_loss=True)],
    ids=lambda settings: next(iter(settings)),
)
def test_training_options(settings: dict[str, object], data: Path, tmp_path: Path) -> None:
    plain = finetune(small(data, tmp_path / 'plain', epochs=1, save_every=0, drop=None))
    other = finetune(small(data, tmp_path / 'other', epochs=1, save_every=0, drop=None, **settings))
    assert other.metrics['train_loss'] > 0
    if 'grad_checkpointing' in settings:  # the same gradients; running statistics see each batch twice
        require_equal(learnt(other.folder), learnt(plain.folder))
    else:
        before, after = (read_last(run.folder)['state_dict'] for run in (plain, other))
        assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
