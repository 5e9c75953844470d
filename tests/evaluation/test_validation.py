"""Validation: the numbers of timm's own functions on the same folder, the command, several processes, errors."""

import csv
import json
import shutil
import tarfile
from argparse import Namespace
from itertools import islice

import numpy as np
import pytest
import timm
import timm.data
import torch
from drawn_data import write_shards
from PIL import Image
from safetensors.torch import load_file
from subprocesses import ROOT, run_python
from timm.utils import accuracy
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import timm_sk
from timm_sk.cli import app
from timm_sk.distributed import DistributedContext
from timm_sk.evaluation import validation
from timm_sk.evaluation.validation_config import ValidationConfig
from timm_sk.finetune import Config, finetune
from timm_sk.pretrained import bundled_folder

MODEL = 'sknet_atto.digits'


def validate(data, model=MODEL, *, context=None, log=None, **settings):
    config = ValidationConfig(**dict(data=str(data), workers=0) | settings)
    return validation.validate(model, config, context=context, log=log)


def write_digits(root, count):
    """The first held-out digits in a folder per class; each third is rotated, which the model does not know."""
    data = load_file(ROOT / 'tests' / 'data' / 'digits_heldout.safetensors')
    for number, (pixels, label) in enumerate(zip(data['images'][:count], data['labels'].tolist(), strict=False)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.numpy())
        image = image.rotate(90) if number % 3 == 0 else image
        image.save(folder / f'{number:03d}.png')
    return root


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('digits') / 'validation', 200).parent


@pytest.mark.deep
def test_evaluation_of_a_model(digits, tmp_path):
    """The numbers of the validation by name, also of a folder's model, in another mode and dtype."""
    expected = validate(digits).evaluation
    assert 60 < expected.top1 < 80
    model, _ = timm_sk.load(MODEL, device='cpu')
    found = timm_sk.evaluate(model.train(), digits, workers=0, batch_size=32)
    assert (found.count, found.top1, found.top5) == (200, expected.top1, expected.top5)
    assert torch.equal(found.confusion, expected.confusion)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert model.training
    shutil.copytree(bundled_folder(MODEL), tmp_path / 'export')
    half, _ = timm_sk.load(str(tmp_path / 'export'), device='cpu', dtype=torch.bfloat16)
    found = timm_sk.evaluate(half, str(digits), workers=0, split='validation')
    assert found.top1 == pytest.approx(expected.top1, abs=3)
    assert 1e-6 < abs(found.loss - expected.loss) < 0.05
    with pytest.raises(ValueError, match='omit the checkpoint'):
        timm_sk.evaluate(model, digits, checkpoint='x.safetensors')
    with pytest.raises(TypeError, match='batchsize'):
        timm_sk.evaluate(model, digits, batchsize=3)
    with pytest.raises(ValueError, match=r'sknet_atto\.digits has 4 classes, the data set has 10'):
        timm_sk.evaluate(timm_sk.load(MODEL, num_classes=4)[0], digits)


def difficult(root, copy):
    """The same images, which timm reads differently: 16-bit greys, turned by EXIF, as .tif, in folders of years."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, file in enumerate(sorted(root.glob('*/*.png'))):
        image = Image.open(file).convert('L')
        folder = copy / file.parent.name / ('2023' if number % 2 else '')
        folder.mkdir(parents=True, exist_ok=True)
        if number % 3:
            Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(folder / f'{file.stem}.png')
        else:
            image.rotate(90, expand=True).save(folder / f'{file.stem}.tif', exif=exif)
        (folder / f'._{file.stem}.png').write_bytes(b'of macOS')
    return copy


def test_one_way_to_read(digits, tmp_path):
    copy = difficult(digits / 'validation', tmp_path / 'copy')
    found, plain = validate(copy), validate(digits)
    assert found.class_names == plain.class_names
    assert torch.equal(found.evaluation.confusion, plain.evaluation.confusion)
    assert found.evaluation.loss == pytest.approx(plain.evaluation.loss, abs=1e-6)


def test_timm_reader(digits, tmp_path):
    """Ten folders of images that timm reads otherwise, and of which it leaves some out."""
    copy = difficult(digits / 'validation', tmp_path / 'copy')
    for file in copy.glob('**/*.png'):
        (copy / file.relative_to(copy).parts[0] / file.name).write_bytes(file.read_bytes())
        if file.name.startswith('._') or file.parent.name == '2023':
            file.unlink()
    for file in copy.glob('*/._*'):
        file.unlink()
    top1, top5, loss = timms_numbers(copy)
    found = validate(copy, timm_reader=True).evaluation
    assert found.count < 200
    assert (found.top1, found.top5) == (pytest.approx(top1), pytest.approx(top5))  # timm's are in float32
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert validate(copy).evaluation.top1 > top1 + 10


def timms_numbers(root, amp=False, **wanted):
    """Top-1, top-5 and loss as timm's validate.py takes them, from timm's functions."""
    model = timm.create_model(MODEL, pretrained=True).eval()
    config = timm.data.resolve_data_config(wanted, model=model, use_test_size=True)
    dataset = timm.data.create_dataset('', root=str(root), split='validation')
    options = {name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')}
    options |= dict(batch_size=200, num_workers=0, persistent_workers=False, device=torch.device('cpu'))
    ((images, targets),) = timm.data.create_loader(dataset, **options)
    with torch.inference_mode(), torch.autocast('cpu', enabled=amp):
        logits = model(images)
        numbers = [*accuracy(logits, targets, topk=(1, 5)), cross_entropy(logits, targets)]
    return [number.item() for number in numbers]


@pytest.mark.parametrize(
    ('batch_size', 'wanted'),
    [
        (40, {}),
        (25, dict(img_size=36, crop_pct=0.95, interpolation='bicubic')),
        (50, dict(amp=True)),
    ],
)
def test_metrics_of_timm(digits, batch_size, wanted):
    top1, top5, loss = timms_numbers(digits, **wanted)
    found = validate(digits, batch_size=batch_size, **wanted)
    assert 40 < top1 < 99
    assert top1 < top5 < 100
    assert found.evaluation.count == 200
    assert (found.evaluation.top1, found.evaluation.top5) == (top1, top5)
    assert found.evaluation.loss == pytest.approx(loss, abs=1e-6)


def test_row_of_timm(digits):
    top1, top5, _ = timms_numbers(digits)
    found = validate(digits, batch_size=64, workers=2)
    expected = dict(
        model=MODEL,
        top1=round(top1, 4),
        top1_err=round(100 - top1, 4),
        top5=round(top5, 4),
        top5_err=round(100 - top5, 4),
        param_count=0.2,
        img_size=32,
        crop_pct=1.0,
        interpolation='bilinear',
    )
    assert [*found.row().items()] == [*expected.items()]
    assert found.class_names == list('0123456789')


def test_reparam_and_channels_last(digits):
    plain, folded, last = (validate(digits, **options) for options in ({}, {'reparam': True}, {'channels_last': True}))
    assert folded.param_count < plain.param_count
    for other in (folded, last):
        assert torch.equal(other.evaluation.confusion, plain.evaluation.confusion)
        assert other.evaluation.top5 == plain.evaluation.top5
        assert other.evaluation.loss == pytest.approx(plain.evaluation.loss, abs=1e-4)


def test_grey_model(digits, tmp_path):
    grey = timm.create_model(MODEL, pretrained=True, in_chans=1)  # its first weights summed over the channels
    timm.models.save_for_hf(grey, str(tmp_path), safe_serialization=True, model_args=dict(in_chans=1))
    found, plain = validate(digits, f'local-dir:{tmp_path}'), validate(digits)
    assert torch.equal(found.evaluation.confusion, plain.evaluation.confusion)


def test_checkpoint_file(digits, tmp_path):
    model = timm.create_model(MODEL, pretrained=True)
    other = timm.create_model(MODEL).state_dict()
    content = dict(state_dict=other, state_dict_ema=model.state_dict(), args=Namespace(model='sknet_atto'))
    torch.save(content, tmp_path / 'ten.pth')  # as timm's train.py does
    found = validate(digits, 'sknet_atto', checkpoint=str(tmp_path / 'ten.pth'), use_ema=True, num_classes=10)
    assert torch.equal(found.evaluation.confusion, validate(digits).evaluation.confusion)
    model.reset_classifier(3)
    torch.save(model.state_dict(), tmp_path / 'three.pth')
    with pytest.raises(ValueError, match=r'of another shape: fc.weight \(\[3, 224\] instead of \[10, 224\]\)'):
        validate(digits, 'sknet_atto', checkpoint=str(tmp_path / 'three.pth'), num_classes=10)


@pytest.mark.deep
def test_averaged_weights_of_run(digits, tmp_path):
    run = tmp_path / 'run'
    settings = dict(epochs=1, lr=0.01, warmup_epochs=0, workers=0, device='cpu', model_ema=True)
    finetune(Config(data=str(digits / 'validation'), model=MODEL, output=str(run), **settings))

    def loss(path, use_ema=False):
        return validate(digits, checkpoint=str(path), use_ema=use_ema).evaluation.loss

    last, averaged = loss(run / 'last.pt'), loss(run / 'last.pt', use_ema=True)
    assert last != averaged
    model = timm.create_model(MODEL)
    for use_ema, expected in ((False, last), (True, averaged)):
        assert loss(run / 'best.pt', use_ema) == averaged  # which is evaluated
        timm.models.load_checkpoint(model, str(run / 'last.pt'), use_ema=use_ema)
        torch.save(model.state_dict(), tmp_path / 'timm.pth')
        assert loss(tmp_path / 'timm.pth') == expected


def test_use_train_size(digits, tmp_path):
    timm.models.save_for_hf(timm.create_model(MODEL, pretrained=True), str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['pretrained_cfg'] |= dict(test_input_size=[3, 40, 40], test_crop_pct=0.9)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    larger = validate(digits, f'local-dir:{tmp_path}')
    assert (larger.img_size, larger.crop_pct) == (40, 0.9)
    as_trained = validate(digits, f'local-dir:{tmp_path}', use_train_size=True)
    assert (as_trained.img_size, as_trained.crop_pct) == (32, 1.0)
    plain = validate(digits).evaluation.confusion
    assert torch.equal(as_trained.evaluation.confusion, plain)
    assert not torch.equal(larger.evaluation.confusion, plain)


def digits_in_shards(folder, lengths):
    """The first held-out digits in shards."""
    files = iter(sorted(write_digits(folder / 'data', sum(lengths)).glob('*/*.png')))
    shards = [[(file.read_bytes(), file.parent.name) for file in islice(files, length)] for length in lengths]
    return f'wds/{write_shards(folder / "shards", dict(validation=shards))}'


def test_damaged_and_missing_images_of_stream(tmp_path):
    """A shard with a damaged image, which then lacks two of ten images."""
    pytest.importorskip('webdataset')
    data, shard = digits_in_shards(tmp_path, [10]), tmp_path / 'shards' / 'validation-0000.tar'
    with tarfile.open(shard) as archive:
        start = archive.getmember('0000-0004.png').offset_data
        end = archive.getmember('0000-0008.png').offset
    content = bytearray(shard.read_bytes())
    content[start : start + 8] = b'damaged!'
    shard.write_bytes(content)
    found = validate(data, max_bad_images=1).evaluation
    assert found.count == 9
    assert found.bad == [f'{shard}: 0000-0004: not an image that can be read']
    with pytest.raises(ValueError, match=f'1 image cannot be read, --max-bad-images allows 0: {shard}: 0000-0004'):
        validate(data)
    shard.write_bytes(content[:end])
    with pytest.raises(ValueError, match='3 of 10 images are missing from the shards or damaged; --max-bad-images all'):
        validate(data, max_bad_images=2)


def test_stream_without_shards_in_two_processes(tmp_path):
    pytest.importorskip('webdataset')
    config = ValidationConfig(data=digits_in_shards(tmp_path, [2]))
    data = validation.open_validation_data(config)
    data.images.shards = None  # as of hfids/ and tfds/
    with pytest.raises(ValueError, match=r'hfids/ and tfds/ do not distribute .* validate in one process'):
        validation.validate(MODEL, config, data, context=DistributedContext(size=2))


def test_retry_with_smaller_batches(digits, monkeypatch):
    """A model with memory for 30 images, and one with none."""
    expected = validate(digits).evaluation.confusion
    create = validation.ready_model

    def limit(most):
        model = create(MODEL, device='cpu')

        def refuse(module, arguments):
            if len(arguments[0]) > most:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

        model.register_forward_pre_hook(refuse)
        monkeypatch.setattr(validation, 'ready_model', lambda *args, **kwargs: model)

    lines = []
    limit(30)
    found = validate(digits, retry=True, batch_size=64, log=lines.append)
    assert found.batch_size == 24
    assert torch.equal(found.evaluation.confusion, expected)
    sizes = ((64, 48), (48, 32), (32, 24))
    assert lines == [f'{MODEL}: out of memory with batch size {a}, retrying with {b}.' for a, b in sizes]
    with pytest.raises(ValueError, match='Out of memory with batch size 64: use a smaller one, or --retry'):
        validate(digits, batch_size=64)
    limit(0)
    with pytest.raises(ValueError, match='Out of memory with batch size 1:'):
        validate(digits, retry=True, batch_size=4)


def command(*arguments):
    done = CliRunner().invoke(app, ['validate', *map(str, arguments), '--device', 'cpu', '--workers', '0'])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def save_worse(folder):
    """The model, which never predicts half of its classes."""
    worse = timm.create_model(MODEL, pretrained=True)
    with torch.no_grad():
        worse.get_classifier().bias[:5] -= 100
    timm.models.save_for_hf(worse, str(folder), safe_serialization=True)
    return f'local-dir:{folder}'


def test_several_models(digits, tmp_path):
    worse, file = save_worse(tmp_path / 'worse'), tmp_path / 'results.csv'
    models = ('--model', worse, '--model', 'sknet_atto.nope', '--model', MODEL)
    done = command(digits, *models, '--results-file', file)
    assert done.exit_code == 1
    assert done.stderr.startswith('timm-sk: sknet_atto.nope: sknet_atto has no checkpoint "nope".')
    assert done.stderr.count('\n') == 1
    assert done.stdout.index(MODEL) < done.stdout.index('local-dir')  # the better one first
    with file.open(newline='') as text:
        rows = list(csv.DictReader(text))
    for row, name in zip(rows, (MODEL, worse), strict=True):
        assert row == {column: str(value) for column, value in validate(digits, name).row().items()}
    assert float(rows[0]['top1']) > float(rows[1]['top1'])


def test_json_and_per_class(digits):
    found = validate(digits).evaluation
    (document,) = json.loads(command(digits, '--model', MODEL, '--json', '--per-class').stdout)
    assert document['loss'] == pytest.approx(found.loss, abs=1e-6)
    assert document['ece'] == pytest.approx(found.ece, abs=1e-6)
    assert [document['top1'], document['count'], document['bad']] == [round(found.top1, 4), 200, []]
    assert [line['name'] for line in document['per_class']] == list('0123456789')
    assert [line['top1'] for line in document['per_class']] == found.per_class
    assert sum(line['count'] for line in document['per_class']) == 200
    shown = command(digits, '--model', MODEL, '--per-class').stdout
    assert f'{found.top1:.3f}' in shown
    assert all(f'{top1:.2f}' in shown for top1 in found.per_class)


def test_corrupt_images(tmp_path):
    root = write_digits(tmp_path / 'data', 40)
    broken = root / '7' / 'broken.png'
    broken.write_bytes(next((root / '7').iterdir()).read_bytes()[:60])
    done = command(root, '--model', MODEL)
    assert (done.exit_code, done.stdout) == (1, '')
    assert done.stderr.startswith(f'timm-sk: 1 image cannot be read, --max-bad-images allows 0: {broken}')
    assert done.stderr.count('\n') == 1
    done = command(root, '--model', MODEL, '--max-bad-images', 1, '--json')
    (document,) = json.loads(done.stdout)
    assert (done.exit_code, document['count'], len(document['bad'])) == (0, 40, 1)
    assert document['bad'][0].startswith(str(broken))
    assert f'{MODEL} skipped {broken}' in command(root, '--model', MODEL, '--max-bad-images', 1).stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone'], 'gone: no such folder or tar of images.'),
        (['nine'], 'sknet_atto.digits has 10 classes, the data set has 9: choose a model of those classes.'),
        (
            ['ten', '--class-map', 'reversed.txt'],
            f"{MODEL} has the data set's classes in another order, 0, 1, 2, …: name them in that order",
        ),
        (['parts', '--split', 'tset'], 'parts has no split tset: name one of train, validation.'),
        (['ten', '--labels', 'v2'], 'sknet_atto.digits has 10 classes, the labels v2 are for 1000'),
        (['ten', '--labels', 'r3'], "labels must be one of real, v2, a, r, got 'r3'"),
        (['ten', '--interpolation', 'cubic'], 'interpolation must be one of nearest'),
        (['ten', '--crop-pct', '0'], 'crop_pct must be above 0'),
        (['ten', '--batch-size', '0'], 'batch_size must be above 0, got 0'),
        (['ten', '--use-ema'], 'use_ema needs a file of weights'),
        (['ten', '--amp', '--amp-dtype', 'float8'], 'amp_dtype must be'),
        (['ten', '--checkpoint', 'gone.pth'], 'gone.pth'),
        (['ten', '--num-classes', '10'], 'num_classes needs a file of weights: name it with --checkpoint'),
        (['ten', '--results-file', 'nowhere/results.csv'], 'nowhere/results.csv: cannot write results there.'),
    ],
)
def test_errors_in_one_line(arguments, message, tmp_path, monkeypatch):
    write_digits(tmp_path / 'ten', 40)
    shutil.copytree(tmp_path / 'ten', tmp_path / 'nine')
    shutil.rmtree(tmp_path / 'nine' / '4')
    for split in ('train', 'validation'):
        shutil.copytree(tmp_path / 'ten', tmp_path / 'parts' / split)
    (tmp_path / 'reversed.txt').write_text('\n'.join(map(str, range(9, -1, -1))))
    monkeypatch.chdir(tmp_path)
    done = command(*arguments, '--model', MODEL)
    assert (done.exit_code, done.stdout) == (1, '')
    assert message in done.stderr
    assert done.stderr.startswith('timm-sk: ')
    assert done.stderr.count('\n') == 1


@pytest.mark.deep
def test_torchrun(tmp_path):
    """9 images in 3 shards, which two processes cannot share evenly, and a model that fails in both."""
    pytest.importorskip('webdataset')
    source, file = digits_in_shards(tmp_path, [4, 3, 2]), tmp_path / 'results.csv'
    found = validate(source)
    run = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'timm_sk', 'validate', source)
    wanted = ('--model', MODEL, '--model', 'nope', '--device', 'cpu', '--batch-size', '2')
    how = ('--workers', '1', '--json', '--per-class', '--results-file', str(file))
    done = run_python(*run, *wanted, *how, GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')
    assert done.returncode != 0
    assert done.stderr.count('timm-sk: nope: There is no model "nope".') == 1
    document, failed = json.loads(done.stdout)
    assert failed['model'] == 'nope'
    assert document.items() >= found.row().items()
    assert [line['top1'] for line in document['per_class']] == found.evaluation.per_class
    assert document['count'] == found.evaluation.count == 9
    assert document['loss'] == pytest.approx(found.evaluation.loss, abs=1e-6)
    assert document['ece'] == pytest.approx(found.evaluation.ece, abs=1e-6)
    with file.open(newline='') as text:
        assert list(csv.DictReader(text)) == [{name: str(value) for name, value in found.row().items()}]
