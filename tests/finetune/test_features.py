"""Features as files: the model's own embeddings, continued after a kill, the same from any number of processes."""

import json
import multiprocessing
import os
import signal
from itertools import count

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from filling import fill_model
from safetensors import safe_open
from torch import nn

from timm_sk.data import SyntheticImages, normalizer, open_dataset
from timm_sk.distributed import DistributedContext
from timm_sk.finetune.features import write_features

COUNT, CHUNK, BATCH = 11, 4, 3
CPU = torch.device('cpu')


def transform(image):
    return np.array(image).transpose(2, 0, 1)


prepare = normalizer((0.5,) * 3, (0.5,) * 3, CPU)


@pytest.fixture(scope='module')
def model():
    return fill_model(timm.create_model('sknet_atto'))


@pytest.fixture(scope='module')
def images():
    return SyntheticImages(COUNT, seed=1)


def write(model, images, folder, **options):
    settings = dict(
        context=DistributedContext(), prepare=prepare, batch_size=BATCH, workers=0, chunk=CHUNK, source='shapes'
    )
    return write_features(model, images, transform, folder=folder, **{**settings, **options})


def read(folder, form='safetensors'):
    """All embeddings, labels and names, in the index's order."""
    index = json.loads((folder / 'index.json').read_text())
    embeddings, labels, names = [], [], []
    for chunk in index['chunks']:
        if form == 'npy':
            embeddings.append(torch.from_numpy(np.load(folder / chunk['files'][0])))
            labels += np.load(folder / chunk['files'][1]).tolist()
            names += (folder / chunk['files'][2]).read_text().splitlines()
        else:
            with safe_open(folder / chunk['files'][0], 'pt') as file:
                embeddings.append(file.get_tensor('embeddings'))
                labels += file.get_tensor('labels').tolist()
                names += json.loads(file.metadata()['names'])
    return torch.cat(embeddings), labels, names, index


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module', params=['safetensors', 'npy'])
def undisturbed(request, model, images, tmp_path_factory):
    """A form, and what a run without any trouble writes in it."""
    torch.set_num_threads(1)
    return request.param, contents(write(model, images, tmp_path_factory.mktemp('all'), form=request.param))


@pytest.mark.parametrize('form', ['safetensors', 'npy'])
def test_they_are_the_models_own_embeddings(form, model, images, tmp_path):
    seen = []
    model.train()
    folder = write(model, images, tmp_path / 'new' / 'features', form=form, on_batch=seen.append)
    assert model.training
    embeddings, labels, names, index = read(folder, form)
    model.eval()
    batch = torch.stack([torch.from_numpy(transform(images.read(i)[0])) for i in range(COUNT)])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(prepare(batch)), pre_logits=True)
        assert torch.allclose(model.fc(embeddings), model(prepare(batch)), atol=1e-4)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected)
    assert labels == images.targets()
    assert names == [f'image {i}' for i in range(COUNT)]
    assert seen == [3, 1, 3, 1, 3]
    assert [(chunk['first'], chunk['count']) for chunk in index['chunks']] == [(0, 4), (4, 4), (8, 3)]
    told = {key: index[key] for key in ('model', 'source', 'dimensions', 'count', 'bad')}
    assert told == dict(model='sknet_atto.digits', source='shapes', dimensions=224, count=COUNT, bad=[])


def killed_writing(nth, model, images, folder, form):
    """Die at the n-th file, when it is written but not yet in its place."""
    calls = count(1)
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == nth else None
    torch.set_num_threads(1)
    write(model, images, folder, form=form)


@pytest.mark.deep
@pytest.mark.parametrize('nth', [1, 2, 3, 4, 5])
def test_killed_and_continued_they_are_the_same_bytes(nth, undisturbed, model, images, tmp_path):
    form, expected = undisturbed
    forking = multiprocessing.get_context('fork')
    process = forking.Process(target=killed_writing, args=(nth, model, images, tmp_path, form))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path.suffix == '.partial']
    assert 'index.json' not in contents(tmp_path)
    seen = []
    write(model, images, tmp_path, form=form, on_batch=seen.append)
    assert contents(tmp_path) == expected
    if form == 'safetensors':  # whose chunks are a file each, after that which says what they are of
        assert sum(seen) == COUNT - CHUNK * max(0, min(nth - 2, 3)) + (nth == 5)
    seen.clear()
    write(model, images, tmp_path, form=form, on_batch=seen.append)
    assert (seen, contents(tmp_path)) == ([], expected)


def run_rank(rank, model, images, folder, form, meeting):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    seen = []
    write(model, images, folder, form=form, context=DistributedContext(rank=rank, size=2), on_batch=seen.append)
    (meeting.parent / f'seen{rank}').write_text(str(sum(seen)))
    dist.destroy_process_group()


@pytest.mark.deep
def test_two_processes_write_what_one_writes(undisturbed, model, images, tmp_path):
    form, expected = undisturbed
    forking = multiprocessing.get_context('fork')
    arguments = (model, images, tmp_path / 'features', form, tmp_path / 'meeting')
    processes = [forking.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / 'features') == expected
    assert [(tmp_path / f'seen{rank}').read_text() for rank in range(2)] == ['7', '4']


def test_a_chunk_that_is_damaged_is_written_again(undisturbed, model, images, tmp_path):
    form, expected = undisturbed
    for name, content in expected.items():
        torn = name.startswith(('features-00001', 'embeddings-00001'))
        (tmp_path / name).write_bytes(content[:-9] if torn else content)
    seen = []
    write(model, images, tmp_path, form=form, on_batch=seen.append)
    assert (contents(tmp_path), seen) == (expected, [3, 1])


def test_a_chunk_of_other_images_than_it_should_have_is_written_again(undisturbed, model, images, tmp_path):
    form, expected = undisturbed
    for name, content in expected.items():
        (tmp_path / name).write_bytes(expected[name.replace('-00001', '-00002')] if '-' in name else content)
    seen = []
    write(model, images, tmp_path, form=form, on_batch=seen.append)
    assert (contents(tmp_path), seen) == (expected, [3, 1])


def test_a_folder_of_something_else_is_refused(model, images, tmp_path):
    folder = write(model, images, tmp_path / 'features')
    before = contents(folder)
    other = fill_model(timm.create_model('sknet_atto'), seed=5)
    with pytest.raises(ValueError, match=r'features holds other features: weights \w+ instead of \w+\. Name a new'):
        write(other, images, folder)
    with pytest.raises(ValueError, match='source shapes instead of digits'):
        write(model, images, folder, source='digits')
    with pytest.raises(ValueError, match='images 11 instead of 5; last image 10 instead of image 4'):
        write(model, images.subset(range(5)), folder)
    with pytest.raises(ValueError, match='chunk 4 instead of 5'):
        write(model, images, folder, chunk=5)
    with pytest.raises(ValueError, match='form safetensors instead of npy'):
        write(model, images, folder, form='npy')
    assert contents(folder) == before
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'letter.txt').write_text('mine')
    with pytest.raises(ValueError, match='is not empty and holds no features'):
        write(model, images, tmp_path / 'own')
    with pytest.raises(ValueError, match="form must be safetensors or npy, got 'csv'"):
        write(model, images, tmp_path / 'x', form='csv')


@pytest.fixture
def folder_of_images(tmp_path, images):
    """Nine files, of which the sixth and the eighth to ninth are none."""
    root = tmp_path / 'data'
    for index in range(9):
        (root / 'abc'[index // 3]).mkdir(parents=True, exist_ok=True)
        path = root / 'abc'[index // 3] / f'{index}.png'
        images.read(index)[0].save(path)
        if index in (5, 7, 8):
            path.write_bytes(b'torn')
    return root


@pytest.mark.parametrize('form', ['safetensors', 'npy'])
def test_images_that_cannot_be_read(form, model, images, folder_of_images, tmp_path):
    opened = open_dataset(str(folder_of_images), split='train')
    settings = dict(folder=tmp_path / 'features', chunk=2, form=form)
    with pytest.raises(ValueError, match=r'An image cannot be read: .*5\.png: .* and 1 more\. 1 may be left out'):
        write(model, opened, max_bad=1, **settings)
    write(model, opened, max_bad=3, **settings)
    embeddings, labels, names, index = read(tmp_path / 'features', form)
    assert [name[-5] for name in names] == list('012346')
    assert labels == [0, 0, 0, 1, 1, 2]
    assert embeddings.shape == (6, 224)
    assert [chunk['count'] for chunk in index['chunks']] == [2, 2, 1, 1, 0]
    assert [line.partition(':')[0][-5:] for line in index['bad']] == ['5.png', '7.png', '8.png']
    with pytest.raises(ValueError, match='and 2 more'):
        write(model, opened, max_bad=2, **settings)
    for number in (5, 7, 8):  # mended, they are taken
        images.read(number)[0].save(folder_of_images / 'abc'[number // 3] / f'{number}.png')
    write(model, opened, **settings)
    assert [name[-5] for name in read(tmp_path / 'features', form)[2]] == list('012345678')


def test_autocast_and_workers_are_used(model, images, tmp_path):
    entered = []

    def autocast():
        entered.append(True)
        return torch.autocast('cpu', torch.bfloat16)

    low = read(write(model, images, tmp_path / 'low', autocast=autocast, workers=1))[0]
    full = read(write(model, images, tmp_path / 'full'))[0]
    assert len(entered) == 5
    assert 0 < float((low - full).abs().max()) < 0.1 * float(full.abs().max())


def test_modules_without_a_name(images, tmp_path):
    class Net(nn.Module):
        def forward_features(self, x):
            return x

        def forward_head(self, x, pre_logits=False):
            return x.mean((2, 3))

    embeddings, *_, index = read(write(Net(), images, tmp_path))
    assert (index['model'], index['dimensions'], embeddings.shape) == ('Net', 3, (COUNT, 3))
