"""Distributed data-parallel training on the CPU, in real processes."""

import distributed
import pytest
import torch
from ranks import run_ranks

pytestmark = pytest.mark.deep


def test_both_ranks_have_the_mean_of_their_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    ranks = run_ranks(distributed.run_rank, tmp_path, devices=['cpu'] * 2)
    expected = distributed.averaged(2)
    alone = distributed.gradients(distributed.net(), 0)
    assert any(not torch.allclose(alone[name], expected[name], rtol=1e-3) for name in expected)
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
