"""Two processes train ours as they train timm's class: DDP with a static graph, and FSDP2."""

import pytest
from parallel_steps import run_rank
from ranks import run_ranks
from timm_pair import assert_differs, assert_same, each_family, each_mode

pytestmark = pytest.mark.integration


@each_family
@each_mode
@pytest.mark.parametrize('kind', ['ddp', 'fsdp2'])
def test_three_steps_in_two_processes(name, training, kind, tmp_path, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    ranks = run_ranks(run_rank, tmp_path, name, kind, training, devices=['cpu'] * 2)
    for ours, theirs in ranks:
        assert_same(ours, theirs, tolerance=1e-8)
    assert_same(ranks[0][0]['fc.weight'], ranks[1][0]['fc.weight'])
    assert_differs(ranks[0][0]['output 0'], ranks[1][0]['output 0'])
