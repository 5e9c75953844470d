"""Killed within an epoch and resumed, a run ends with the same bits as one that nobody disturbed.

`tests/kill_finetune.py` kills at random moments, more often, and two processes too.
"""

import signal
from pathlib import Path

import pytest
from finetune_runs import DISK, draw_folder, kill_at, require_equal, run_ranks, small, state_of

pytestmark = pytest.mark.deep


def test_resume_after_kill(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / 'data')
    whole = small(data, tmp_path / 'whole', epochs=2)
    assert run_ranks(whole, disk=DISK) == [0]

    killed = whole.changed(output=str(tmp_path / 'killed'), resume='auto')
    for step in (2, 8):  # of six in an epoch
        assert kill_at(killed, step) == -signal.SIGKILL
    assert run_ranks(killed) == [0]

    require_equal(state_of(tmp_path / 'killed'), state_of(tmp_path / 'whole'))
