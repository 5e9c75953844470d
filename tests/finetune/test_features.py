"""Features as files: the model's own embeddings, the same after a kill and from any number of processes."""

import json
import multiprocessing
import os
import signal
from itertools import count

import numpy as np
import pytest
import timm
import torch
from drawn_data import drawn, write_folder
from random_weights import fill_model
from ranks import run_ranks
from safetensors import safe_open

from timm_sk.data import SyntheticImages, normalizer, open_dataset
from timm_sk.distributed import DistributedContext
from timm_sk.finetune import Config
from timm_sk.finetune.features import write_features

COUNT, CHUNK, BATCH = 11, 4, 3
FORMS = ['safetensors', 'npy']
normalize = normalizer((0.5,) * 3, (0.5,) * 3, torch.device('cpu'))


def transform(image):
    return np.array(image).transpose(2, 0, 1)


@pytest.fixture(scope='module')
def model():
    return fill_model(timm.create_model('sknet_atto')).eval()


@pytest.fixture(scope='module')
def images():
    return SyntheticImages(COUNT, seed=1)


def write(model, images, folder, *, form='safetensors', source='shapes', chunk=CHUNK, context=None, **settings):
    """Write features; returns the sizes of the batches that were computed."""
    seen = []

    def prepare(batch):
        seen.append(len(batch))
        return normalize(batch)

    config = Config(**dict(batch_size=BATCH, workers=0, features_format=form) | settings)
    options = dict(config=config, context=context or DistributedContext(), prepare=prepare, source=source, chunk=chunk)
    write_features(folder, images, model, transform, **options)
    return seen


def read(folder, form='safetensors'):
    """All embeddings, labels and names, in the index's order."""
    index = json.loads((folder / 'index.json').read_text())
    embeddings, labels, names = [], [], []
    for chunk in index['chunks']:
        if form == 'npy':
            embeddings.append(torch.from_numpy(np.load(folder / chunk['files'][0])))
            labels += np.load(folder / chunk['files'][1]).tolist()
            names += json.loads((folder / chunk['files'][2]).read_text())['names']
        else:
            with safe_open(folder / chunk['files'][0], 'pt') as file:
                embeddings.append(file.get_tensor('embeddings'))
                labels += file.get_tensor('labels').tolist()
                names += json.loads(file.metadata()['names'])
    return torch.cat(embeddings), labels, names, index


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module', params=FORMS)
def complete(request, model, images, tmp_path_factory):
    """A format, and the files of a single call."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('all')
    write(model, images, folder, form=request.param)
    return request.param, contents(folder)


@pytest.mark.parametrize('form', FORMS)
def test_embeddings_of_model(form, model, images, tmp_path):
    folder = tmp_path / 'new' / 'features'
    assert write(model, images, folder, form=form) == [3, 1, 3, 1, 3]
    embeddings, labels, names, index = read(folder, form)
    batch = torch.stack([torch.from_numpy(transform(images.read(i)[0])) for i in range(COUNT)])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(normalize(batch)), pre_logits=True)
        assert torch.allclose(model.fc(embeddings), model(normalize(batch)), atol=1e-4)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected)
    assert labels == images.targets()
    assert names == [f'image {i}' for i in range(COUNT)]
    assert [(chunk['first'], chunk['count']) for chunk in index.pop('chunks')] == [(0, 4), (4, 4), (8, 3)]
    assert index == dict(
        format_version=1, model='sknet_atto.digits', source='shapes', dimensions=224, count=COUNT, bad=[]
    )


def killed_writing(nth, model, images, folder, form):
    """Die at the n-th file, when it is written but not yet renamed."""
    calls = count(1)
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == nth else None
    torch.set_num_threads(1)
    write(model, images, folder, form=form)


@pytest.mark.deep
@pytest.mark.parametrize('nth', [1, 2, 3, 4, 5])
def test_continue_after_kill(nth, complete, model, images, tmp_path):
    form, expected = complete
    forking = multiprocessing.get_context('fork')
    process = forking.Process(target=killed_writing, args=(nth, model, images, tmp_path, form))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path.suffix == '.partial']
    assert 'index.json' not in contents(tmp_path)
    seen = write(model, images, tmp_path, form=form)
    assert contents(tmp_path) == expected
    if form == 'safetensors':  # whose chunks are a file each, after source.json
        assert sum(seen) == COUNT - CHUNK * max(0, min(nth - 2, 3)) + (nth == 5)
    assert write(model, images, tmp_path, form=form) == []
    assert contents(tmp_path) == expected


def write_in_rank(rank, device, folder, form):
    model, images = fill_model(timm.create_model('sknet_atto')).eval(), SyntheticImages(COUNT, seed=1)
    return sum(write(model, images, folder, form=form, context=DistributedContext(rank=rank, size=2)))


@pytest.mark.deep
def test_two_processes(complete, tmp_path):
    form, expected = complete
    assert run_ranks(write_in_rank, tmp_path, tmp_path / 'features', form, devices=['cpu'] * 2) == [7, 4]
    assert contents(tmp_path / 'features') == expected


@pytest.mark.parametrize('damage', ['cut off', 'other images'])
def test_damaged_chunk_is_written_again(damage, complete, model, images, tmp_path):
    form, expected = complete
    for name, content in expected.items():
        if damage == 'other images' and '-' in name:
            content = expected[name.replace('-00001', '-00002')]
        elif name.startswith(('features-00001', 'embeddings-00001')):
            content = content[:-9]
        (tmp_path / name).write_bytes(content)
    assert write(model, images, tmp_path, form=form) == [3, 1]
    assert contents(tmp_path) == expected


def test_folder_with_other_content(model, images, tmp_path):
    folder = tmp_path / 'features'
    write(model, images, folder)
    before = contents(folder)
    other = fill_model(timm.create_model('sknet_atto'), seed=5).eval()
    with pytest.raises(ValueError, match=r'features holds other features: weights \w+ instead of \w+\. Name a new'):
        write(other, images, folder)
    for options, message in (
        (dict(source='digits'), 'source shapes instead of digits'),
        (dict(chunk=5), 'chunk 4 instead of 5'),
        (dict(form='npy'), 'form safetensors instead of npy'),
    ):
        with pytest.raises(ValueError, match=message):
            write(model, images, folder, **options)
    with pytest.raises(ValueError, match='images 11 instead of 5; last image 10 instead of image 4'):
        write(model, images.subset(range(5)), folder)
    assert contents(folder) == before
    source = json.loads((folder / 'source.json').read_text()) | dict(format_version=2)
    (folder / 'source.json').write_text(json.dumps(source))
    with pytest.raises(ValueError, match='no features to continue: it has format version 2'):
        write(model, images, folder)
    (tmp_path / 'own').mkdir()
    own = {'letter.txt': b'mine', 'movie.partial': b'half', 'source.json.12.partial': b'mine too'}
    for name, content in own.items():
        (tmp_path / 'own' / name).write_bytes(content)
    with pytest.raises(ValueError, match='is not empty and holds no features'):
        write(model, images, tmp_path / 'own')
    assert contents(tmp_path / 'own') == own
    write(model, images, folder.with_name('new'))
    (tmp_path / 'new' / 'movie.partial').write_text('half')
    (tmp_path / 'new' / 'features-00000.safetensors.1.2.partial').write_text('half')
    write(model, images, tmp_path / 'new')
    assert {path.name for path in (tmp_path / 'new').glob('*.partial')} == {'movie.partial'}


@pytest.mark.parametrize('form', FORMS)
def test_unreadable_images(form, model, tmp_path):
    """Nine files, of which three are not images."""
    files = sorted(write_folder(tmp_path / 'data', drawn(3)).glob('*/*.png'))
    broken = {file: file.read_bytes() for file in (files[5], files[7], files[8])}
    for file in broken:
        file.write_bytes(b'torn')
    opened, folder = open_dataset(str(tmp_path / 'data'), split='train'), tmp_path / 'features'
    settings = dict(chunk=2, form=form)
    message = f'2 images cannot be read, --max-bad-images allows 1: .*{files[5]}: .*{files[7]}: '
    with pytest.raises(ValueError, match=message):
        write(model, opened, folder, max_bad_images=1, **settings)
    write(model, opened, folder, max_bad_images=3, **settings)
    embeddings, labels, names, index = read(folder, form)
    assert names == [str(file) for file in files if file not in broken]
    assert labels == [0, 0, 0, 1, 1, 2]
    assert embeddings.shape == (6, 224)
    assert [chunk['count'] for chunk in index['chunks']] == [2, 2, 1, 1, 0]
    assert [line.partition(':')[0] for line in index['bad']] == [str(file) for file in broken]
    with pytest.raises(ValueError, match='3 images cannot be read, --max-bad-images allows 2'):
        write(model, opened, folder, max_bad_images=2, **settings)
    for file, content in broken.items():  # fixed images are included
        file.write_bytes(content)
    write(model, opened, folder, **settings)
    assert read(folder, form)[2] == [str(file) for file in files]


def test_replaced_image(model, tmp_path):
    """Its chunk is written again, with what it shows now; a renamed image changes the names of its chunk."""
    files = sorted(write_folder(tmp_path / 'data', drawn(3)).glob('*/*.png'))
    folder, settings = tmp_path / 'features', dict(chunk=3)
    write(model, open_dataset(str(tmp_path / 'data'), split='train'), folder, **settings)
    before = read(folder)[0]
    files[4].write_bytes(files[8].read_bytes())
    assert write(model, open_dataset(str(tmp_path / 'data'), split='train'), folder, **settings) == [3]
    after = read(folder)[0]
    assert torch.equal(after[4], before[8])
    assert torch.equal(after[[0, 1, 2, 3, 5, 6, 7, 8]], before[[0, 1, 2, 3, 5, 6, 7, 8]])
    files[5].rename(files[5].with_name('003.png'))
    assert write(model, open_dataset(str(tmp_path / 'data'), split='train'), folder, **settings) == [3]
    assert read(folder)[2][5].endswith('ring/003.png')


def test_amp_and_workers(model, images, tmp_path):
    write(model, images, tmp_path / 'low', amp=True, workers=1)
    write(model, images, tmp_path / 'full')
    low, full = (read(tmp_path / name)[0] for name in ('low', 'full'))
    assert 0 < float((low - full).abs().max()) < 0.1 * float(full.abs().max())
