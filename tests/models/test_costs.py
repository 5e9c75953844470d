"""costs.csv has every architecture, with its parameters and multiply-adds."""

import pytest

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.models import costs

SHAPES = list(dict.fromkeys(map(costs.shape, CHECKPOINTS.values())))


def test_all_architectures():
    assert list(costs.counted()) == SHAPES, 'count again: python docs/costs.py'


@pytest.mark.parametrize('shape', SHAPES, ids=lambda shape: shape[0])
def test_counts(shape):
    assert costs.counted()[shape] == costs.count(*shape), 'count again: python docs/costs.py'


def test_count_of_a_missing_row(monkeypatch):
    row = CHECKPOINTS['sknet_atto.digits']
    known = costs.cost(row)
    monkeypatch.setattr(costs, 'counted', dict)
    assert costs.cost(row) == known


@pytest.mark.parametrize(
    ('arch', 'params', 'gigamacs'),
    [('sknet50', 27_479_784, 4.463), ('sknet101', 48_686_760, 8.449), ('sknet26', 16_746_408, 2.587)],
)
def test_sizes_of_the_paper(arch, params, gigamacs):
    found, macs = costs.counted()[arch, 1000, (3, 224, 224)]
    assert (found, round(macs / 1e9, 3)) == (params, gigamacs)
