"""The bundled checkpoints are what their cards and the table say."""

import json
import re

import pytest
import timm
import timm.data
import torch
from PIL import Image
from processes import ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.images import read_image
from timm_sk.predict import example_images
from timm_sk.pretrained import bundled_folder, sha256_of

BUNDLED = [name for name, row in CHECKPOINTS.items() if row.bundled]


def transform_of(name):
    return timm.data.create_transform(**timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()))


@pytest.fixture(scope='module')
def held_out():
    """The held-out digits as preprocessed pictures [360, 3, 32, 32], labels [360] and indices [360]."""
    data = load_file(ROOT / 'tests' / 'data' / 'digits_heldout.safetensors')
    transform = transform_of('sknet_atto.digits')
    pictures = [transform(Image.fromarray(image.numpy()).convert('RGB')) for image in data['images']]
    return torch.stack(pictures), data['labels'], data['indices']


@torch.inference_mode()
def test_held_out_accuracy_is_the_published_one(held_out):
    pictures, labels, _ = held_out
    model = timm.create_model('sknet_atto.digits', pretrained=True).eval()
    top1 = 100 * (model(pictures).argmax(1) == labels).double().mean().item()
    card = (bundled_folder('sknet_atto.digits') / 'README.md').read_text()
    assert top1 >= 98.5
    assert f'{top1:.2f}' == f'{CHECKPOINTS["sknet_atto.digits"].top1:.2f}'
    assert re.search(r'Held-out top-1 \| ([\d.]+) %', card)[1] == f'{top1:.2f}'


def test_the_split_is_stratified_and_the_one_written_down(held_out):
    _, labels, indices = held_out
    assert indices.tolist() == json.loads((ROOT / 'weights' / 'digits_split.json').read_text())['held_out']
    assert len(set(indices.tolist())) == 360
    assert 35 <= labels.bincount(minlength=10).min() <= labels.bincount(minlength=10).max() <= 37


@pytest.mark.parametrize('name', BUNDLED)
@torch.inference_mode()
def test_goldens(name):
    golden = load_file(bundled_folder(name) / 'golden.safetensors')
    logits = timm.create_model(name, pretrained=True).eval()(golden['inputs'])
    torch.testing.assert_close(logits, golden['logits'], rtol=0, atol=1e-5 * float(golden['logits'].abs().max()))


@pytest.mark.parametrize('name', BUNDLED)
def test_file(name):
    path = bundled_folder(name) / 'model.safetensors'
    assert path.stat().st_size <= 1e6
    assert sha256_of(path) == CHECKPOINTS[name].bundled.sha256
    state_dict = timm.create_model(CHECKPOINTS[name].arch).state_dict()
    assert [(k, v.shape) for k, v in load_file(path).items()] == [(k, v.shape) for k, v in state_dict.items()]
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert metadata['format'] == 'pt'
    assert metadata['source'] == f'weights/train.py {name}'
    assert re.fullmatch('[0-9a-f]{40}', metadata['commit'])


@pytest.mark.parametrize('name', BUNDLED)
def test_config_agrees_with_the_table(name):
    config = json.loads((bundled_folder(name) / 'config.json').read_text())
    row = CHECKPOINTS[name]
    assert config['architecture'] == row.arch
    assert tuple(config['label_names']) == row.label_names
    assert config['num_classes'] == row.num_classes == len(row.label_names)
    assert 'model_args' not in config
    fields = {field: config['pretrained_cfg'][field] for field in ('mean', 'std', 'input_size', 'interpolation')}
    assert fields == dict(
        mean=list(row.mean), std=list(row.std), input_size=list(row.input_size), interpolation=row.interpolation
    )


def test_examples_are_the_first_held_out_picture_of_each_class(held_out):
    pictures, labels, _ = held_out
    examples = example_images('sknet_atto.digits')
    assert [path.stem for path in examples] == list('0123456789')
    for label, path in enumerate(examples):
        first = pictures[(labels == label).nonzero()[0, 0]]
        assert torch.equal(transform_of('sknet_atto.digits')(read_image(path)), first)
