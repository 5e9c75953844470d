"""Killed at random moments and resumed, a run ends with the same bits as one that nobody disturbed."""

import random
import time
from pathlib import Path

import pytest
from runs import DISK, draw_folder, kill_and_resume, require_equal, run_ranks, small, weights_of


@pytest.mark.parametrize('world', [1, 2])
def test_the_end_is_bit_identical(tmp_path: Path, world: int) -> None:
    data = draw_folder(tmp_path / 'data')
    whole = small(data, tmp_path / 'whole', batch_size=8 // world, epochs=2)
    began = time.perf_counter()
    assert run_ranks(whole, world, disk=DISK) == [0] * world
    seconds = time.perf_counter() - began

    killed = whole.changed(output=str(tmp_path / 'killed'))
    kill_and_resume(killed, world, kills=2, seconds=seconds, stream=random.Random(world))

    require_equal(weights_of(tmp_path / 'killed'), weights_of(tmp_path / 'whole'))
