"""Every recipe runs for an epoch on drawn images."""

import csv
import math

import pytest

from timm_sk.finetune.config import Config, read_settings
from timm_sk.finetune.recipes import recipe_names

# One epoch of a large net takes minutes on two cores, and 64 images fill none of its batches: so the smallest net
# stands in for it, and for its size and batch. All that the recipe sets besides, how it trains and augments, stays.
STAND_IN = dict(model='sknet_atto', pretrained=False, img_size=32)
TRY = dict(synthetic=64, epochs=1, warmup_epochs=0, batch_size=16, workers=0, device='cpu')


@pytest.mark.parametrize('name', recipe_names())
def test_recipe_runs(name, tmp_path):
    from timm_sk.finetune import finetune

    settings = dict(model='sknet_atto.shapes') | read_settings(name)  # the recipe for any net names none
    if not settings['pretrained']:
        settings |= STAND_IN
    finetune(Config(**settings | TRY | dict(output=str(tmp_path / 'run'))))
    with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    losses = {column: float(value) for column, value in rows[0].items() if 'loss' in column}
    assert losses
    assert all(math.isfinite(loss) for loss in losses.values()), losses
