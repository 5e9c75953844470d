"""The data of a run: read as everywhere, of any number of channels, and the same when it resumes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_runs import draw_folder, read_last, run_epochs, small
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from timm_sk.cli import app
from timm_sk.data import SyntheticImages, fingerprint, open_dataset
from timm_sk.finetune import Config, extract, finetune
from timm_sk.finetune.run_checkpoint import ResumeError


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp('data'))


def rewritten(data: Path, copy: Path, write: Callable[[Image.Image, Path], Any]) -> Path:
    """The same data set with its images written in another way."""
    for number, file in enumerate(sorted(data.glob('*/*/*.png'))):
        path = copy / file.relative_to(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(Image.open(file), path if number % 2 else path.with_name(f'{path.stem}.odd.png'))
    return copy


def write_grey(image: Image.Image, path: Path) -> None:
    image.convert('L').save(path)


def write_deep_and_turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    grey = image.convert('L')
    if path.suffixes[0] == '.odd':
        grey.rotate(-90).save(path, exif=exif)
    else:
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)


def test_depth_and_orientation(data: Path, tmp_path: Path) -> None:
    """16-bit and turned images train as the same images in 8 bits, and give the same features."""
    copies = [rewritten(data, tmp_path / write.__name__, write) for write in (write_grey, write_deep_and_turned)]
    rows, features = [], []
    for copy in copies:
        settings = dict(epochs=1, model_ema=False, save_every=0)
        rows.append(finetune(small(copy, tmp_path / f'{copy.name}-run', **settings)).metrics)
        extract(small(copy, tmp_path / 'unused', features=str(tmp_path / f'{copy.name}-features')))
        chunk = tmp_path / f'{copy.name}-features' / 'train' / 'features-00000.safetensors'
        features.append(load_file(chunk)['embeddings'])
    names = ('train_loss', 'val_loss', 'val_top1')
    assert [rows[0][name] for name in names] == [rows[1][name] for name in names]
    assert torch.equal(*features)


def write_bands(image: Image.Image, path: Path) -> None:
    """Five bands of an image, which is known by the last two alone."""
    red, green, blue = np.moveaxis(np.asarray(image), 2, 0)
    bands = np.dstack([np.full_like(red, 9), red // 2, 255 - blue, green, blue])
    if path.suffixes[0] == '.odd':
        np.save(path.with_suffix('.npy'), bands.astype(np.uint16) * 257)
    else:
        pytest.importorskip('tifffile').imwrite(path.with_suffix('.tif'), bands, photometric='minisblack')


def test_channels(data: Path, tmp_path: Path) -> None:
    """Five channels train with augmentation, validate and predict."""
    copy = rewritten(data, tmp_path / 'bands', write_bands)
    run = finetune(small(copy, tmp_path / 'run', in_chans=5, epochs=1, color_jitter=0.3, workers=1))
    assert next(iter(read_last(run.folder)['state_dict'].values())).shape[1] == 5
    model, options = f'local-dir:{run.export}', ['--device', 'cpu']
    validated = CliRunner().invoke(app, ['validate', str(copy), '--model', model, '--json', *options])
    assert f'"top1": {run.metrics["val_top1"]:.2f}'[:-2] in validated.stdout, validated.output
    files = sorted((copy / 'validation').glob('*/*'))
    options += ['--model', model]
    predicted = CliRunner().invoke(app, ['predict', *map(str, files), '--topk', '1', '--json', *options])
    assert predicted.exit_code == 0, predicted.output
    labels = [line.split('"')[3] for line in predicted.stdout.splitlines() if '"label"' in line]
    hits = sum(label == file.parent.name for label, file in zip(labels, files, strict=True))
    assert 100 * hits / len(files) == pytest.approx(run.metrics['val_top1'])
    rgb = next((data / 'train').glob('*/*.png'))
    refused = CliRunner().invoke(app, ['predict', str(rgb), *options])
    assert refused.exit_code == 1
    assert f'{rgb}: cannot be decoded: its shape is [32, 32, 3], the model takes [height, width, 5].' in refused.stderr


def replace_one(file: Path) -> None:
    """Replace an image by another of the same size and name."""
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1] + b'\0')
    assert file.stat().st_size == size


def rename_one(file: Path) -> None:
    file.rename(file.with_name('zzz.png'))


def rename_class(file: Path) -> None:
    for split in ('train', 'validation'):
        folder = file.parents[2] / split / file.parent.name
        folder.rename(folder.with_name('zebra'))


def test_resume_with_other_data(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / 'data')
    config = small(copy, tmp_path / 'run', epochs=2, model_ema=False)
    run_epochs(config, 1)
    changes = ((replace_one, 'train'), (replace_one, 'validation'), (rename_one, 'train'), (rename_class, 'train'))
    for change, split in changes:
        shutil.rmtree(copy)
        shutil.copytree(data, copy)  # with its modification times
        change(next((copy / split).glob('star/*.png')))
        with pytest.raises(ResumeError, match='was trained on other data') as caught:
            finetune(config.changed(resume='auto'))
        assert '\n' not in str(caught.value)
        assert str(caught.value).endswith('copy data with cp -p or rsync -a.')
    shutil.rmtree(copy)
    shutil.copytree(data, copy)
    assert finetune(config.changed(resume='auto')).metrics['epoch'] <= 1


def test_fingerprint(data: Path, tmp_path: Path) -> None:
    """It does not read the images, and knows them in any folder."""
    first = fingerprint(open_dataset(str(data), split='train'), open_dataset(str(data), split='val'))
    assert first.startswith('48+40 images, files ')
    copy = shutil.copytree(data, tmp_path / 'data')
    assert fingerprint(open_dataset(str(copy), split='train'), open_dataset(str(copy), split='val')) == first
    (file, *_) = (copy / 'train').glob('star/*.png')
    before = file.stat()
    file.write_bytes(b'x' * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint(open_dataset(str(copy), split='train'), open_dataset(str(copy), split='val')) == first
    assert fingerprint(SyntheticImages(8, seed=0)) != fingerprint(SyntheticImages(8, seed=1))


def refusal(*arguments: object) -> str:
    options = ['--workers', '0', '--device', 'cpu', '--model', 'sknet_atto.shapes', '--epochs', '1']
    done = CliRunner().invoke(app, ['finetune', *map(str, arguments), *options])
    assert (done.exit_code, done.stdout) == (1, '')
    assert 'Traceback' not in done.stderr
    return done.stderr.splitlines()[-1]


def test_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    message = refusal(data, '--val-split', 'vall', '--output', run)
    assert message == f'timm-sk: {data} has no split vall: name one of train, validation.'
    assert not run.exists()
    message = refusal(data, '--batch-size', 1, '--output', run)
    assert message.startswith('timm-sk: BatchNorm needs at least 2 images per step and process, got 1: raise --batch-')


def test_held_out_fraction_is_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    finetune(Config(synthetic=64, model='sknet_atto', output=str(tmp_path), epochs=1, device='cpu'), log=lines.append)
    assert '48 training images, 16 validation images (25% of each class, held out)' in lines[0]
