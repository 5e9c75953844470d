"""Predictions and embeddings: order, batches, names of classes, kinds of images."""

import shutil

import pytest
import timm
import timm.models
import torch
from PIL import Image

import timm_sk
from timm_sk.errors import UnreadableImageError
from timm_sk.factory import ready_model
from timm_sk.inference.prediction import BATCH_SIZE, class_names, example_images, iter_predictions, predict


def test_order_and_errors(tmp_path):
    examples = example_images('sknet_atto')
    assert examples == example_images('sknet_atto.digits')
    paths, expected = [], []
    for index in range(2 * BATCH_SIZE + 5):
        path = tmp_path / f'{index}.png'
        if index % 7 == 3:
            path.touch()
            expected.append(None)
        else:
            shutil.copy(examples[index % 10], path)
            expected.append(str(index % 10))
        paths.append(path)
    found = list(iter_predictions(ready_model('sknet_atto', device='cpu'), paths, topk=2))
    assert [prediction.path for prediction in found] == paths
    assert [prediction.labels[0] if prediction.labels else None for prediction in found] == expected
    assert [prediction.error is None for prediction in found] == [label is not None for label in expected]
    assert all(len(prediction.labels) in (0, 2) for prediction in found)


def test_class_names():
    assert class_names(timm.create_model('sknet_atto', pretrained=True)) == list('0123456789')
    assert class_names(timm.create_model('sknet_atto', pretrained=True, num_classes=3)) == ['0', '1', '2']
    names = class_names(timm.create_model('skresnet34', device='meta'))
    assert len(names) == 1000
    assert names[0].startswith('tench')
    assert names[999].startswith('toilet tissue')


def test_grayscale_model(tmp_path):
    model = timm.create_model('sknet_atto', pretrained=True, in_chans=1).eval()
    timm.models.save_for_hf(model, str(tmp_path / 'grey'), safe_serialization=True)
    loaded = ready_model(f'local-dir:{tmp_path / "grey"}', device='cpu')
    (prediction,) = predict(loaded, example_images('sknet_atto')[:1], topk=1)
    assert prediction.labels == ('0',)


def test_model_without_classifier():
    with pytest.raises(ValueError, match='no classifier'):
        predict(timm.create_model('sknet_atto', num_classes=0).eval(), example_images('sknet_atto'))


def test_kinds_of_images():
    """Paths, PIL images and tensors give the same classes and embeddings, in eval mode whatever the model's mode."""
    model, transform = timm_sk.load('sknet_atto', device='cpu')
    model.train().fc.eval()
    before = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
    paths = example_images('sknet_atto')
    images = [*map(Image.open, paths)]
    batch = torch.stack([*map(transform, images)])
    found = timm_sk.predict(model, paths, topk=3)
    assert [prediction.path for prediction in found] == paths
    assert [prediction.classes[0] for prediction in found] == [*range(10)]
    assert [prediction.labels[0] for prediction in found] == [*'0123456789']
    embeddings = timm_sk.embed(model, paths)
    assert (embeddings.shape, embeddings.dtype) == ((10, 224), torch.float32)
    with torch.no_grad():
        best = model.fc(embeddings).softmax(1).topk(3)  # which takes the embeddings
    assert [prediction.classes for prediction in found] == [*map(tuple, best.indices.tolist())]
    torch.testing.assert_close(torch.tensor([prediction.probabilities for prediction in found]), best.values)
    for given in (images, batch, [*batch], [str(paths[0]), *images[1:5], *batch[5:]], paths[0].parent):
        others = timm_sk.predict(model, given, topk=3)
        assert [prediction.probabilities for prediction in others] == [
            pytest.approx(prediction.probabilities, abs=1e-6) for prediction in found
        ]
        torch.testing.assert_close(timm_sk.embed(model, given), embeddings)
    assert [prediction.path for prediction in timm_sk.predict(model, images)] == [None] * 10
    for one in (paths[7], str(paths[7]), images[7], batch[7]):
        assert [prediction.labels[0] for prediction in timm_sk.predict(model, one)] == ['7']
    assert model.training
    assert not model.fc.training
    assert all(torch.equal(dict(model.named_buffers())[name], buffer) for name, buffer in before)


@pytest.mark.deep
def test_embeddings_can_be_trained_on():
    model, _ = timm_sk.load('sknet_atto', device='cpu')
    embeddings = timm_sk.embed(model, example_images('sknet_atto') * 7)
    torch.testing.assert_close(embeddings[:10], embeddings[-10:])  # of batches of 32 and of 6
    probe = torch.nn.Linear(224, 10)
    probe(embeddings).sum().backward()
    torch.testing.assert_close(probe.weight.grad, embeddings.sum(0).expand(10, -1))


@pytest.mark.deep
def test_invalid_images(tmp_path):
    model, _ = timm_sk.load('sknet_atto', device='cpu')
    gone = [*example_images('sknet_atto'), tmp_path / 'gone.png']
    for task in (timm_sk.predict, timm_sk.embed):
        with pytest.raises(UnreadableImageError, match=r'gone\.png: no such file'):
            task(model, gone)
        for x in (torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32), torch.zeros(32, 32)):
            with pytest.raises(ValueError, match=r'pass float tensors \[3, H, W\]'):
                task(model, x)
        with pytest.raises(ValueError, match='of several sizes'):
            task(model, [torch.zeros(3, 32, 32), torch.zeros(3, 64, 64)])
    assert timm_sk.predict(model, []) == []
    with pytest.raises(ValueError, match='No images'):
        timm_sk.embed(model, [])
    with pytest.raises(ValueError, match='without features_only'):
        timm_sk.embed(timm_sk.load('sknet_atto', features_only=True)[0], gone)
