"""Exporting a run: timm loads it with the same logits, and the card states data, settings and parent."""

import json

import pytest
import timm
import timm.data
import torch
import yaml
from huggingface_hub import ModelCard
from random_weights import fill_model

from timm_sk.errors import UnpublishableError
from timm_sk.finetune import Config, read_settings
from timm_sk.finetune.export import export_run
from timm_sk.publishing import hub_folder
from timm_sk.publishing.hub_folder import EXPORTED, check_golden

NAMES = ['cat', 'dog', 'eel']


def trained(**options):
    return fill_model(timm.create_model('sknet_atto', num_classes=3, **options))


def export(folder, model=None, *, config=None, input_size=(3, 48, 48), **options):
    model = model or trained()
    facts = dict(class_names=NAMES, metrics=dict(val_loss=0.25, val_top1=97.5, val_top5=100.0), dataset='three pets')
    preprocessing = (
        timm.data.resolve_data_config({}, model=model) | dict(input_size=input_size) | options.pop('changed', {})
    )
    facts['preprocessing'] = preprocessing
    return export_run(folder, model, config=config or Config(tag='pets'), **facts | options)


def load(folder):
    """The exported model as timm loads it, with the logits of its golden file."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert check_golden(model, folder / 'golden.safetensors') == 0
    return model


def card_of(folder):
    return ModelCard.load(folder / 'README.md')


def test_load_exported(tmp_path):
    model = trained().train()
    config = Config(
        tag='pets', model='sknet_atto.shapes', data='/home/somebody/pets', output='/home/somebody/runs', lr=0.02,
        mixup=0.2, freeze='layer4', licence='mit', scale=(0.5, 1.0), workers=7,
    )  # fmt: skip
    folder = export(tmp_path / 'runs' / 'export', model, config=config, dataset=str(tmp_path))
    assert {path.name for path in folder.iterdir()} == set(EXPORTED)
    assert [path.name for path in folder.parent.iterdir()] == ['export']
    assert model.training
    loaded = load(folder)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    cfg = loaded.pretrained_cfg
    assert (cfg['tag'], cfg['license'], list(cfg['label_names'])) == ('pets', 'mit', NAMES)
    assert tuple(cfg['input_size']) == (3, 48, 48)
    assert tuple(cfg['mean']) == (0.5, 0.5, 0.5)
    recipe = json.loads((folder / 'recipe.json').read_text())
    assert {key: recipe[key] for key in ('lr', 'mixup', 'freeze')} == dict(lr=0.02, mixup=0.2, freeze='layer4')
    written = ''.join((folder / name).read_text() for name in ('config.yaml', 'README.md'))
    assert 'somebody' not in written
    assert str(tmp_path) not in written
    assert f'| Training data | {tmp_path.name}, training split |' in written
    again = Config(**read_settings(str(folder / 'config.yaml')))
    assert again == config.changed(data='', output=None)


def test_card(tmp_path):
    config = Config(tag='pets', model='skresnet18.ra_in1k', licence='mit', lr=0.02)
    model = timm.create_model('skresnet18', num_classes=3)
    card = card_of(export(tmp_path / 'x', model, config=config, input_size=(3, 64, 64)))
    head = card.data.to_dict()
    assert (head['license'], head['base_model']) == ('mit', 'timm/skresnet18.ra_in1k')
    metrics = head['model-index'][0]['results'][0]['metrics']
    assert [metric['value'] for metric in metrics] == [97.5, 100.0]
    assert head['model-index'][0]['results'][0]['dataset']['name'] == 'three pets'
    for line in (
        'Fine-tuned by `timm-sk finetune` from `skresnet18.ra_in1k`, whose licence is apache-2.0. The licence of these '
        'weights is mit.',
        '| Training data | three pets, training split |',
        '| Learning rate | 0.02 |',
        '| val_loss | 0.25 |',
        '| lr | 0.02 |',
        '| Classes | 3: cat, dog, eel |',
        'Top-1 97.50 %, top-5 100.00 % on three pets, reported by: timm-sk finetune, on the validation split.',
    ):
        assert f'\n{line}\n' in card.content
    assert '| epochs |' not in card.content  # as by default


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        (dict(), 'from `sknet_atto.digits`, whose licence is apache-2.0. The licence of these weights is not estab'),
        (dict(pretrained=False), 'Trained by `timm-sk finetune` from random weights.'),
        (dict(initial_checkpoint='/home/me/own.pth'), 'from the file own.pth, whose licence is not established.'),
    ],
)
def test_card_of_parents(settings, text, tmp_path):
    card = card_of(export(tmp_path / 'x', config=Config(tag='pets', **settings)))
    assert text in card.content
    assert '| Licence | not established |' in card.content
    assert (card.data.license, card.data.base_model) == (None, None)
    assert '/home' not in (tmp_path / 'x' / 'config.yaml').read_text()


def test_card_of_second_generation(tmp_path):
    first = export(tmp_path / 'first', config=Config(tag='shapes', licence='cc-by-4.0'))
    model = timm.create_model(f'local-dir:{first}', pretrained=True)
    folder = export(tmp_path / 'second', model, config=Config(tag='pets2', model=f'local-dir:{first}'))
    card = card_of(folder)
    assert (
        'from `sknet_atto.shapes`, whose licence is cc-by-4.0.' in card.content
    )  # not what the table has by that name
    assert card.data.base_model is None
    assert yaml.safe_load((folder / 'config.yaml').read_text())['model'] == 'local-dir:first'


def test_grey_images_and_pooling(tmp_path):
    options = dict(in_chans=1, global_pool='catavgmax')
    model = trained(**options)
    data_config = dict(mean=[0.4], std=[0.2], interpolation='bicubic', crop_pct=0.9)
    config = Config(tag='grey', in_chans=1, gp='catavgmax')
    folder = export(tmp_path / 'x', model, config=config, input_size=(1, 32, 32), changed=data_config)
    loaded = load(folder)
    assert loaded.fc.weight.shape == (3, 448)
    cfg = loaded.pretrained_cfg
    assert [tuple(cfg[key]) for key in ('input_size', 'mean', 'std')] == [(1, 32, 32), (0.4,), (0.2,)]
    assert (cfg['interpolation'], cfg['crop_pct']) == ('bicubic', 0.9)


def test_architecture_of_timm(tmp_path):
    model = timm.create_model('test_resnet', num_classes=3)
    config = Config(tag='pets', model='test_resnet')
    folder = export(tmp_path / 'x', model, config=config, class_names=None, input_size=(3, 64, 64))
    load(folder)
    assert 'label_names' not in json.loads((folder / 'config.json').read_text())
    card = card_of(folder)
    assert card.data.tags == ['image-classification', 'timm', 'transformers']
    assert card.data.base_model == 'timm/test_resnet.r160_in1k'
    assert '| Architecture | `test_resnet` of timm |' in card.content


def test_replace_older_export(tmp_path, monkeypatch):
    folder = export(tmp_path / 'x')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(there):
        raise UnpublishableError('another model')

    with monkeypatch.context() as patch:
        patch.setattr(hub_folder, 'require_same_logits', fail)
        with pytest.raises(UnpublishableError):
            export(folder, fill_model(trained(), seed=5))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    export(folder, fill_model(trained(), seed=5))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == set(before)
    assert after['model.safetensors'] != before['model.safetensors']
    assert list(tmp_path.iterdir()) == [folder]


def test_invalid_exports(tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'thesis.tex').write_text('years of work')
    with pytest.raises(ValueError, match=r'own exists and is not an export of sknet_atto\.pets: nothing was written'):
        export(tmp_path / 'own')
    folder = export(tmp_path / 'x')
    with pytest.raises(ValueError, match=r'x exists and is not an export of sknet_atto\.birds'):
        export(folder, config=Config(tag='birds'))
    (folder / 'LICENSE').write_text('mine')
    with pytest.raises(ValueError, match='x holds LICENSE, which is not of an export, and would be replaced: nothing'):
        export(folder)
    assert (folder / 'LICENSE').read_text() == 'mine'
    with pytest.raises(ValueError, match='2 label names for 3 classes'):
        export(tmp_path / 'y', class_names=['a', 'b'])
    with pytest.raises(ValueError, match='Invalid tag'):
        export(tmp_path / 'y', config=Config(tag='../pets'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['own', 'x']
