"""Killed at random moments and resumed, a run ends with the same bits as one that nobody disturbed.

`tests/kill_finetune.py` does so more often, with two processes too.
"""

import random
import time
from pathlib import Path

from runs import DISK, draw_folder, kill_and_resume, require_equal, run_ranks, small, weights_of


def test_the_end_is_bit_identical(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / 'data')
    whole = small(data, tmp_path / 'whole', epochs=2)
    began = time.perf_counter()
    assert run_ranks(whole, disk=DISK) == [0]
    seconds = time.perf_counter() - began

    killed = whole.changed(output=str(tmp_path / 'killed'))
    kill_and_resume(killed, 1, kills=2, seconds=seconds, stream=random.Random(1))

    require_equal(weights_of(tmp_path / 'killed'), weights_of(tmp_path / 'whole'))
