"""The bundled checkpoints match their cards and the table."""

import json
import re

import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from subprocesses import ROOT

from timm_sk import shapes
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.data.images import read_image
from timm_sk.inference.prediction import example_images, predict
from timm_sk.pretrained import bundled_folder, sha256_of
from weights import selection

BUNDLED = [name for name, row in CHECKPOINTS.items() if row.bundled]


def transform_of(name):
    return timm.data.create_transform(**timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()))


@pytest.fixture(scope='module')
def digits():
    """The held-out digits as preprocessed images [360, 3, 32, 32], labels [360] and indices [360]."""
    data = load_file(ROOT / 'tests' / 'data' / 'digits_heldout.safetensors')
    transform = transform_of('sknet_atto.digits')
    images = [transform(Image.fromarray(image.numpy()).convert('RGB')) for image in data['images']]
    return torch.stack(images), data['labels'], data['indices']


def drawn(count, **kwargs):
    """The first held-out shapes as preprocessed images [N, 3, 32, 32] and labels [N]."""
    images, labels = shapes.draw(count, seed=shapes.TEST_SEED, **kwargs)
    transform = transform_of('sknet_atto.shapes')
    return torch.stack([transform(Image.fromarray(image)) for image in images]), torch.from_numpy(labels)


@pytest.fixture(scope='module')
def held_out(digits):
    """Held-out images [N, 3, 32, 32] and labels [N] of each bundled checkpoint."""
    return {'sknet_atto.digits': digits[:2], 'sknet_atto.shapes': drawn(shapes.TEST_COUNT)}


@pytest.mark.parametrize(('name', 'goal'), [('sknet_atto.digits', 98.5), ('sknet_atto.shapes', 97)])
@torch.inference_mode()
def test_held_out_accuracy(name, goal, held_out):
    images, labels = held_out[name]
    model = timm.create_model(name, pretrained=True).eval()
    guesses = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    top1 = 100 * (guesses == labels).double().mean().item()
    card = (bundled_folder(name) / 'README.md').read_text()
    assert top1 >= goal
    assert f'{top1:.2f}' == f'{CHECKPOINTS[name].top1:.2f}'
    assert re.search(r'Held-out top-1 \| ([\d.]+) %', card)[1] == f'{top1:.2f}'


@pytest.mark.deep
def test_scale_table():
    model = timm.create_model('sknet_atto.shapes', pretrained=True).eval()
    images = {scale: drawn(selection.IMAGES, scale=scale)[0] for scale in (0.3, 0.5, 0.7, 0.9)}
    measured = selection.measure(model, images)
    card = (bundled_folder('sknet_atto.shapes') / 'README.md').read_text()
    rows = re.findall(r'^\| (SK_\d_\d) \| (.*) \|$', card, re.MULTILINE)
    assert [unit for unit, _ in rows] == list(measured) == ['SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1']
    for unit, cells in rows:
        published = [float(cell.split(' ± ')[0]) for cell in cells.split(' | ')]
        means = [float(weights.mean()) for weights in measured[unit].values()]
        assert published == pytest.approx([*means, means[-1] - means[0]], abs=0.005)
    assert selection.verdict(measured) in ' '.join(card.split())


def test_larger_kernel_weights():
    # with a constant logit for the last branch, the softmax over two is a sigmoid
    model = timm.create_model('sknet_atto').eval()
    attn = model.layer3[0].conv2.attn
    attn.register_forward_hook(lambda module, args, logits: torch.zeros_like(logits) + torch.tensor([[[0.0], [2.0]]]))
    weights = selection.larger_kernel_weights(model, torch.randn(3, 3, 32, 32))
    assert weights['SK_4_1'].tolist() == pytest.approx([torch.tensor(2.0).sigmoid().item()] * 3)
    assert len(attn._forward_hooks) == 1


def test_split(digits):
    _, labels, indices = digits
    assert indices.tolist() == json.loads((ROOT / 'weights' / 'digits_split.json').read_text())['held_out']
    assert len(set(indices.tolist())) == 360
    assert 35 <= labels.bincount(minlength=10).min() <= labels.bincount(minlength=10).max() <= 37


def test_verdict():
    noise = torch.tensor([-0.01, 0.01] * 50)
    measured = {
        'SK_2_1': {0.3: 0.5 + noise, 0.9: 0.6 - noise},
        'SK_3_1': {0.3: 0.5 + noise, 0.9: 0.4 - noise},
        'SK_4_1': {0.3: 0.5 + noise, 0.9: 0.502 - noise},
        'SK_5_1': {0.3: 0.5 + noise, 0.9: 0.502 + noise},
    }
    assert '| SK_2_1 | 0.500 ± 0.001 | 0.600 ± 0.001 | +0.100 ± 0.002 |' in selection.table(measured)
    verdict = selection.verdict(measured)
    assert 'rises in SK_2_1, SK_5_1; it falls in SK_3_1; it changes by at most 3 standard errors in SK_4_1.' in verdict
    assert verdict.endswith('in 1 of the 3 units before the last stage, and also in the last.')


@pytest.mark.parametrize('name', BUNDLED)
@torch.inference_mode()
def test_goldens(name, held_out):
    golden = load_file(bundled_folder(name) / 'golden.safetensors')
    inputs = golden['inputs']
    if name in held_out:
        assert torch.equal(inputs, held_out[name][0][: len(inputs)])
    logits = timm.create_model(name, pretrained=True).eval()(inputs)
    torch.testing.assert_close(logits, golden['logits'], rtol=0, atol=1e-5 * float(golden['logits'].abs().max()))


@pytest.mark.parametrize('name', BUNDLED)
def test_file(name):
    path = bundled_folder(name) / 'model.safetensors'
    assert path.stat().st_size <= 3e6
    assert sha256_of(path) == CHECKPOINTS[name].bundled.sha256
    state_dict = timm.create_model(name).state_dict()
    assert [(k, v.shape) for k, v in load_file(path).items()] == [(k, v.shape) for k, v in state_dict.items()]
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert metadata['format'] == 'pt'
    assert metadata['source'] in (f'weights/train.py {name}', 'weights/cifar10.py')
    assert re.fullmatch('[0-9a-f]{40}', metadata['commit'])


@pytest.mark.parametrize('name', ['sknet_atto.digits', 'sknet_atto.shapes'])
def test_examples(name, held_out):
    images, labels = held_out[name]
    examples = example_images(name)
    assert tuple(path.stem for path in examples) == CHECKPOINTS[name].label_names
    for label, path in enumerate(examples):
        first = images[(labels == label).nonzero()[0, 0]]
        assert torch.equal(transform_of(name)(read_image(path)), first)


def test_photographs():
    """The weights are stored in half precision and loaded in float32; the cat of the examples is a cat."""
    name = 'sknet17_1x32d.cifar10'
    stored = load_file(bundled_folder(name) / 'model.safetensors')
    model = timm.create_model(name, pretrained=True).eval()
    for path, module in model.named_modules():
        halved = isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        for key, parameter in module.named_parameters(path, recurse=False):
            assert stored[key].dtype == (torch.float16 if halved else torch.float32)
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, stored[key].float())
    cat, coffee = predict(model, example_images(name))
    assert (cat.path.stem, cat.labels[0]) == ('cat', 'cat')
    assert coffee.path.stem == 'other-coffee'  # of none of the classes
    card = (bundled_folder(name) / 'README.md').read_text()
    top1, low, high = map(
        float, re.search(r'Test top-1 \| ([\d.]+) % \(95 % interval ([\d.]+) to ([\d.]+)', card).groups()
    )
    assert top1 == CHECKPOINTS[name].top1
    assert low < top1 < high
