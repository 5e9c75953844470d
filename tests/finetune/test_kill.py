"""Killed within an epoch and resumed, a run ends with the same bits as an undisturbed one."""

import random
from pathlib import Path

import pytest
from finetune_runs import DISK, draw_folder, kill_at, require_equal, run_ranks, small, state_of

pytestmark = pytest.mark.deep


@pytest.mark.parametrize('count', [1, 2])
def test_resume_after_kill(tmp_path: Path, count: int) -> None:
    data = draw_folder(tmp_path / 'data')
    whole = small(data, tmp_path / 'whole', epochs=2, batch_size=8 // count)
    assert run_ranks(whole, count) == [0] * count

    killed = whole.changed(output=str(tmp_path / 'killed'), resume='auto')
    for step in (2, 4, 8):  # of six in an epoch
        kill_at(killed, step, count, delay=random.uniform(0, DISK))
    assert run_ranks(killed, count) == [0] * count
    require_equal(state_of(tmp_path / 'killed'), state_of(tmp_path / 'whole'))
