"""A run from its settings to what it leaves, and what stops it: one line each, nothing lost."""

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
from finetune_runs import draw_folder, require_equal, small, state_of
from subprocesses import run_python

from timm_sk import shapes
from timm_sk.finetune import Config, Stopped, finetune, loop
from timm_sk.finetune.run import CLAIM, _claim_alone
from timm_sk.finetune.run_checkpoint import LAST, ResumeError, read

EPOCHS = 2


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp('finished') / 'run'
    finetune(small(data, folder, epochs=EPOCHS))
    return folder


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.train_step

    def slow(*arguments: object, **settings: object) -> object:
        time.sleep(0.05)
        return step(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, 'train_step', slow)


def stop_after(epochs: int) -> Callable[[loop.Run], None]:
    """What a run does in place of `Run.stop_if_asked`, to be stopped after so many epochs."""

    def stop(run: loop.Run) -> None:
        if run.progress.epoch == epochs:
            raise Stopped('Stopped.')

    return stop


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {'config.yaml', 'metrics.csv', 'curves.png', 'confusion.png', 'last.pt', 'best.pt', 'export'}
    rows = [*csv.DictReader((finished / 'metrics.csv').open())]
    assert [int(float(row['epoch'])) for row in rows] == [*range(EPOCHS)]
    assert all(0 <= float(row['wait_share']) <= 1 and float(row['images_per_s']) > 0 for row in rows)
    settings = yaml.safe_load((finished / 'config.yaml').read_text())
    assert Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}).as_dict() == settings


def test_the_exported_model_is_the_best_one(finished: Path) -> None:
    model = timm.create_model(f'local-dir:{finished / "export"}', pretrained=True)
    best = read(finished / 'best.pt', torch.device('cpu'))['state_dict']
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg['label_names'] == [*shapes.CLASS_NAMES]


def test_the_best_epoch_is_the_one_with_the_best_metric(finished: Path) -> None:
    progress = read(finished / LAST, torch.device('cpu'))['progress']
    assert progress['best']['val_top1'] == max(row['val_top1'] for row in progress['history'])


def test_a_finished_run_that_is_resumed_stays(finished: Path) -> None:
    before = state_of(finished)
    settings = yaml.safe_load((finished / 'config.yaml').read_text())
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    finetune(config.changed(resume='auto'))
    require_equal(state_of(finished), before)


def test_an_existing_run_is_not_overwritten(finished: Path, data: Path) -> None:
    before = (finished / LAST).read_bytes()
    with pytest.raises(ValueError, match=r'is not empty: go on with the run in it by --resume auto, or choose'):
        finetune(small(data, finished, epochs=EPOCHS))
    assert (finished / LAST).read_bytes() == before


@pytest.mark.parametrize(
    ('settings', 'message'),
    [(dict(lr=0.1), 'lr was None and is 0.1'), (dict(amp=True), 'amp was False and is True')],
)
def test_other_settings_do_not_go_on(finished: Path, data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ResumeError, match=f'other settings: {message}'):
        finetune(small(data, finished, epochs=EPOCHS, resume='auto', **settings))


def test_other_data_does_not_go_on(finished: Path, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / 'other', train=56)
    settings = small(other, finished, epochs=EPOCHS, resume='auto')
    with pytest.raises(ResumeError, match=r'data was|other data'):
        finetune(settings)


def test_a_damaged_checkpoint_says_so(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / CLAIM).touch()
    (tmp_path / 'run' / LAST).write_bytes(b'PK\x03\x04 cut off')
    with pytest.raises(ResumeError, match=r'last.pt cannot be read'):
        finetune(small(data, tmp_path / 'run', resume='auto'))


@pytest.mark.deep
@pytest.mark.usefixtures('slow_steps')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_goes_on(data: Path, tmp_path: Path, finished: Path, number: int) -> None:
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


def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.train_step

    def diverging(
        trainee: object, images: torch.Tensor, *arguments: object, updates: int, **settings: object
    ) -> object:
        images = images * float('nan') if updates == 3 else images
        return step(trainee, images, *arguments, updates=updates, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, 'train_step', diverging)
    with pytest.raises(ValueError, match=r'The loss is nan at step 3, with lr 0.0\d+. Try a lower --lr, --clip-grad 1'):
        finetune(small(data, tmp_path / 'run'))
    saved = read(tmp_path / 'run' / LAST, torch.device('cpu'))
    assert saved['progress']['updates'] == 3
    assert all(tensor.isfinite().all() for tensor in saved['state_dict'].values())


def test_weights_that_are_no_numbers_are_not_saved(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'not finite after step|The loss is (nan|inf) at step'):
        finetune(small(data, tmp_path / 'run', lr=1e30, warmup_epochs=0, opt='sgd', mixup=0, cutmix=0))
    if (tmp_path / 'run' / LAST).exists():
        saved = read(tmp_path / 'run' / LAST, torch.device('cpu'))['state_dict']
        assert all(tensor.isfinite().all() for tensor in saved.values())


def test_images_that_cannot_be_read_stop_it_or_are_skipped(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / 'data')
    victim = next((data / 'train' / 'ring').iterdir())
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf'1 image cannot be read, more than --max-bad-images 0: .*{victim.name}'):
        finetune(small(data, tmp_path / 'strict', epochs=1, warmup_epochs=0))
    finetune(small(data, tmp_path / 'lenient', epochs=1, warmup_epochs=0, max_bad_images=1))
    (line,) = read(tmp_path / 'lenient' / LAST, torch.device('cpu'))['progress']['bad']
    assert victim.name in line


@pytest.mark.deep
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    data: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses files as long as a checkpoint to the process that goes on with a run."""
    config = small(data, tmp_path / 'run', epochs=EPOCHS)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, 'stop_if_asked', stop_after(1))
        with pytest.raises(Stopped):
            finetune(config)
    content = (tmp_path / 'run' / LAST).read_bytes()
    settings = {name: value for name, value in config.changed(resume='auto').as_dict().items() if value is not None}
    (tmp_path / 'settings.yaml').write_text(yaml.safe_dump(settings))
    full = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))'
    command = f'{full}; from timm_sk.cli import main; main()'
    done = run_python('-c', command, 'finetune', '--config', str(tmp_path / 'settings.yaml'), OMP_NUM_THREADS='1')
    assert (done.returncode, done.stdout) == (1, '')
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('timm-sk: ')]
    assert f'{LAST} cannot be written: File too large. The one before it is whole: make room' in line
    assert 'Traceback' not in done.stderr
    assert (tmp_path / 'run' / LAST).read_bytes() == content
    assert not [*(tmp_path / 'run').glob('*.partial')]
    finetune(config.changed(resume='auto'))
    require_equal(state_of(tmp_path / 'run'), state_of(finished))


def test_a_folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='is a file: name a folder'):
        finetune(small(data, tmp_path / 'file'))
    with pytest.raises(ValueError, match='Not a directory'):
        finetune(small(data, tmp_path / 'file' / 'run'))


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    done = finetune(small(data, tmp_path / 'run', epochs=9, early_stopping=1, lr=1e-9, warmup_lr=1e-9, model_ema=False))
    assert len([*csv.DictReader((done.folder / 'metrics.csv').open())]) < 9


def test_what_does_not_begin_leaves_nothing(tmp_path: Path, data: Path) -> None:
    for settings, message in (
        (dict(data=''), 'Name the data: a folder of images'),
        (dict(data=str(tmp_path / 'nowhere')), 'no such folder'),
        (dict(model='sknet_atto.shape'), 'sknet_atto'),
        (dict(freeze='layer9'), 'freeze must be "head" or one of'),
        (dict(opt='sdg'), 'opt sdg'),
        (dict(num_classes=9), 'num_classes is 9'),
        (dict(amp=True, amp_dtype='float16'), 'float16 needs CUDA'),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(small(data, tmp_path / 'run').changed(**settings))
        assert not (tmp_path / 'run').exists()


@pytest.mark.deep
def test_a_plateau_is_waited_out_over_a_stop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing improves, so after two epochs beside the first the learning rate falls."""
    settings: dict[str, Any] = dict(
        sched='plateau', patience_epochs=1, min_lr=0, lr=1e-6, model_ema=False, save_every=0
    )
    config = small(data, tmp_path / 'whole', epochs=4, warmup_epochs=0, **settings)
    finetune(config)
    stopped = config.changed(output=str(tmp_path / 'stopped'))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, 'stop_if_asked', stop_after(2))
        with pytest.raises(Stopped):
            finetune(stopped)
    finetune(stopped.changed(resume='auto'))

    histories = [
        [row['lr'] for row in read(tmp_path / name / LAST, torch.device('cpu'))['progress']['history']]
        for name in ('whole', 'stopped')
    ]
    assert histories[0][-1] < histories[0][0]
    assert histories[0] == histories[1]
    require_equal(state_of(tmp_path / 'stopped'), state_of(tmp_path / 'whole'))


def test_a_linear_probe_changes_the_classifier_alone(data: Path, tmp_path: Path) -> None:
    done = finetune(small(data, tmp_path / 'run', epochs=1, warmup_epochs=0, linear_probe=True, model_ema=False))
    begin = timm.create_model('sknet_atto.shapes', pretrained=True).state_dict()
    end = read(done.folder / LAST, torch.device('cpu'))['state_dict']
    assert {name for name in end if not torch.equal(end[name], begin[name])} == {'fc.weight', 'fc.bias'}


def test_a_folder_of_others_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('mine')
    for settings in (dict(), dict(resume='auto')):
        with pytest.raises(ValueError, match='is not empty and holds no run: choose another --output'):
            finetune(small(data, tmp_path / 'run', **settings))
    assert (tmp_path / 'run' / 'config.yaml').read_text() == 'mine'


def test_a_restart_takes_over_no_run_of_another_start(
    finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / LAST).read_bytes()
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    with pytest.raises(ValueError, match='is not empty: go on with the run in it by --resume auto'):
        _claim_alone(finished, small(data, finished, epochs=EPOCHS), restarted=True)
    assert (finished / LAST).read_bytes() == before


@pytest.mark.deep
def test_new_weights_follow_the_seed(data: Path, tmp_path: Path) -> None:
    runs = [
        finetune(small(data, tmp_path / name, epochs=1, lr=1e-30, warmup_lr=1e-30, pretrained=False, seed=seed))
        for name, seed in (('one', 1), ('again', 1), ('two', 2))
    ]
    one, again, two = (read(run.folder / LAST, torch.device('cpu'))['state_dict']['fc.weight'] for run in runs)
    assert torch.equal(one, again)
    assert not torch.allclose(one, two)
