"""Every recipe runs for an epoch on drawn images."""

import csv
import math

import pytest
import timm
import torch
from safetensors.torch import load_file

from timm_sk.finetune.config import Config, read_settings
from timm_sk.finetune.recipes import recipe_names
from timm_sk.pretrained import save_safetensors

# One epoch of a large net takes minutes on two cores, and 64 images fill none of its batches: so the smallest net
# stands in for it, and for its size and batch. All that the recipe sets besides, how it trains and augments, stays.
STAND_IN = dict(model='sknet_atto', pretrained=False, img_size=32)
NET = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc')
TRY = dict(synthetic=64, epochs=1, warmup_epochs=0, batch_size=16, workers=0, device='cpu')


@pytest.mark.parametrize('name', recipe_names())
def test_recipe_runs(name, tmp_path):
    from timm_sk.finetune import finetune

    settings = dict(model='sknet_atto.shapes') | read_settings(name)  # the recipe for any net names none
    if not settings['model'].startswith('sknet_atto'):
        settings |= STAND_IN
    finetune(Config(**settings | TRY | dict(output=str(tmp_path / 'run'))))
    with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    losses = {column: float(value) for column, value in rows[0].items() if 'loss' in column}
    assert losses
    assert all(math.isfinite(loss) for loss in losses.values()), losses


@pytest.mark.deep
@pytest.mark.parametrize(
    'settings',
    [
        dict(linear_probe=True),
        dict(read_settings('simclr_imagenet'), layer_decay=0.75),
        dict(model='skresnet50x1_simclr_proj', freeze='head'),
    ],
    ids=['linear probe', 'lars and layer-wise decay', 'projection layer'],
)
def test_simclr_net(settings, tmp_path):
    from timm_sk.finetune import finetune

    settings = {'model': 'skresnet50x1_simclr', **settings, 'pretrained': False}
    settings['model'] = settings['model'].partition('.')[0]
    before = timm.create_model(settings['model'], num_classes=8).state_dict()
    save_safetensors(before, tmp_path / 'model.safetensors')
    own = dict(img_size=64, batch_size=8, synthetic=32, initial_checkpoint=str(tmp_path / 'model.safetensors'))
    finetune(Config(**settings | TRY | own | dict(output=str(tmp_path / 'run'))))
    after = load_file(tmp_path / 'run' / 'export' / 'model.safetensors')
    trained = {key.partition('.')[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert trained == ({'fc'} if settings.get('linear_probe') or settings.get('freeze') else {*NET})
