"""Labels and variants of ImageNet, on small data sets with known results."""

import json

import pytest
import timm.data
import torch
from indexed_images import chosen, evaluate_images, image_of
from timm.data import ImageNetInfo, RealLabelsImagenet

from timm_sk.evaluation.imagenet_labels import folder_classes, label_map
from timm_sk.evaluation.validation_config import ValidationConfig
from timm_sk.evaluation.validation_data import open_validation_data

SYNSETS = ImageNetInfo().label_names()
TIMM_INFO = timm.data.__path__[0] + '/_info'


def write_folder(root, folders):
    """Write one image into each folder."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        image_of(number).save(root / folder / f'{number}.png')
    return str(root)


def open_data(data, **settings):
    return open_validation_data(ValidationConfig(data=str(data), **settings))


def evaluated(data, logits):
    known = data.label_map
    return evaluate_images(data.images, logits, num_classes=len(known.class_names), label_map=known)


@pytest.mark.parametrize('labels', ['a', 'r'])
def test_classes_of_timm(labels):
    with open(f'{TIMM_INFO}/imagenet_{labels}_indices.txt') as file:
        indices = [int(line) for line in file]
    found = label_map(labels)
    assert found.columns.tolist() == indices
    assert len(found.class_names) == 200
    assert found.class_names[7] == ImageNetInfo().index_to_description(indices[7])
    assert list(folder_classes(labels)) == [SYNSETS[index] for index in indices]


@pytest.mark.parametrize('labels', ['a', 'r'])
def test_predictions_are_restricted_to_the_classes(labels, tmp_path):
    """Although most folders are missing, each image has its index among the 200 classes."""
    columns = label_map(labels).columns.tolist()
    places = [3, 57, 199]
    data = open_data(write_folder(tmp_path, [SYNSETS[columns[place]] for place in places]), labels=labels)
    outside = next(index for index in range(1000) if index not in columns)
    logits = chosen([columns[3], columns[58], columns[199]], 1000)
    logits[:, outside] = 5  # the likeliest of all, and none of the 200
    found = evaluated(data, logits)
    assert found.count == 3
    assert found.top1 == pytest.approx(200 / 3)
    assert found.confusion.shape == (200, 200)
    assert found.confusion.nonzero().tolist() == [[3, 3], [57, 58], [199, 199]]
    right, wrong = torch.tensor(1).exp().add(199).log().sub(1), torch.tensor(1).exp().add(199).log()
    assert found.loss == pytest.approx(float((2 * right + wrong) / 3), abs=1e-6)
    assert data.class_names[199] == ImageNetInfo().index_to_description(columns[199])


def test_v2_folders_are_indices(tmp_path):
    data = open_data(write_folder(tmp_path, ['10', '2', '999']), labels='v2')
    found = evaluated(data, chosen([10, 2, 998], 1000))
    assert found.confusion.nonzero().tolist() == [[2, 2], [10, 10], [999, 998]]
    assert found.top1 == pytest.approx(200 / 3)


def real_case(tmp_path):
    """Five images: two labels, another label, one label, none, and two that are not predicted."""
    guesses = [7, 2, 5, 1, 0]
    real = [[3, 7], [2], [9], [], [4, 6]]
    folders = [SYNSETS[index] for index in (3, 1, 5, 1, 4)]
    (tmp_path / 'real.json').write_text(json.dumps(real))
    for number, folder in enumerate(folders):
        (tmp_path / 'data' / folder).mkdir(parents=True, exist_ok=True)
        image_of(number).save(tmp_path / 'data' / folder / f'ILSVRC2012_val_{number + 1:08d}.JPEG', 'png')
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(SYNSETS))
    data = open_data(tmp_path / 'data', labels='real', real_json=str(tmp_path / 'real.json'), class_map=str(names))
    logits = chosen(guesses, 1000, by=3)
    logits[4, 6] = 2  # the second likeliest
    return data, logits


def test_real_labels_by_hand(tmp_path):
    data, logits = real_case(tmp_path)
    found = evaluated(data, logits)
    assert found.count == 4
    assert (found.top1, found.top5) == (50, 75)
    assert found.confusion.nonzero().tolist() == [[2, 2], [4, 0], [7, 7], [9, 5]]
    assert found.per_class[2:10] == [100, None, 0, None, None, 100, None, 0]
    labels = torch.tensor([3, 1, 5, 1, 4])  # the loss stays that of the data set's labels, of all images
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)


def test_real_labels_of_timm(tmp_path):
    data, logits = real_case(tmp_path)
    names = [data.images.name(index) for index in range(5)]
    order = [int(name[-13:-5]) - 1 for name in names]
    theirs = RealLabelsImagenet([name.rpartition('/')[2] for name in names], str(tmp_path / 'real.json'))
    theirs.add_result(logits[order])
    found = evaluated(data, logits)
    assert order != sorted(order)
    assert [found.top1, found.top5] == [theirs.get_accuracy(1), theirs.get_accuracy(5)]


@pytest.mark.parametrize(
    ('labels', 'folders', 'kwargs', 'message'),
    [
        ('r2', ['0'], {}, "labels must be one of real, v2, a, r, got 'r2'"),
        ('v2', ['n01440764'], {}, 'folders with names like 0, 1, 2'),
        ('a', ['tench'], {}, 'folders with names like n01498041'),
        ('a', ['n01498041'], dict(class_map='names.txt'), 'define the classes'),
        ('real', ['n01440764'], {}, 'validation set, this data set has 1'),
    ],
)
def test_invalid_data(labels, folders, kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_data(write_folder(tmp_path, folders), labels=labels, **kwargs)


def test_real_labels_with_other_file_names(tmp_path):
    (tmp_path / 'real.json').write_text('[[1]]')
    with pytest.raises(ValueError, match=r'0\.png: no ReaL label has this name'):
        open_data(write_folder(tmp_path / 'data', ['a']), labels='real', real_json=str(tmp_path / 'real.json'))
    with pytest.raises(ValueError, match="need the names of ImageNet's images"):
        label_map('real')
