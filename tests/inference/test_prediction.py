"""Classification of files: order, batches, names of classes."""

import shutil

import pytest
import timm
import timm.models

from timm_sk.factory import ready_model
from timm_sk.inference.prediction import BATCH_SIZE, class_names, example_images, predict


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
    found = list(predict(ready_model('sknet_atto', device='cpu'), paths, topk=2))
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
        next(predict(timm.create_model('sknet_atto', num_classes=0).eval(), example_images('sknet_atto')))
