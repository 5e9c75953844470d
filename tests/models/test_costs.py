"""The counted costs: those of the architectures as they are, and of all of them."""

import pytest

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.models import costs

SHAPES = list(dict.fromkeys(map(costs.shape, CHECKPOINTS.values())))


def test_all_are_counted():
    assert list(costs.counted()) == SHAPES, 'count again: python -m timm_sk.models.costs'


@pytest.mark.parametrize('shape', SHAPES, ids=lambda shape: shape[0])
def test_the_file_has_what_is_counted(shape):
    assert costs.counted()[shape] == costs.count(*shape), 'count again: python -m timm_sk.models.costs'


def test_what_the_file_lacks_is_counted(monkeypatch):
    row = CHECKPOINTS['sknet_atto.digits']
    known = costs.cost(row)
    monkeypatch.setattr(costs, 'counted', dict)
    assert costs.cost(row) == known
