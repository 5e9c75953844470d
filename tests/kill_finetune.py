"""Kill fine-tuning runs at random moments, resume them, and compare the end with an undisturbed run.

    python tests/kill_finetune.py 20      # one process, and then two together, so often
    python tests/kill_finetune.py 20 2    # two alone

POSIX only.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from finetune_runs import DISK, draw_folder, kill_and_resume, require_equal, run_ranks, small, state_of


def main(kills: int, worlds: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = draw_folder(Path(scratch) / 'data')
        for count in worlds:
            whole = small(data, Path(scratch) / f'whole{count}', batch_size=8 // count)
            run_ranks(
                small(data, Path(scratch) / f'first{count}', epochs=1, warmup_epochs=0), count
            )  # starts the forks' server
            began = time.perf_counter()
            assert run_ranks(whole, count, disk=DISK) == [0] * count
            seconds = time.perf_counter() - began
            killed = whole.changed(output=str(Path(scratch) / f'killed{count}'))
            moments = kill_and_resume(killed, count, kills, seconds, random.Random(count))
            require_equal(state_of(Path(str(killed.output))), state_of(Path(str(whole.output))))
            print(f'{count} at a time: {kills} kills in runs of {seconds:.1f} s, the end is bit-identical')
            for moment, count in sorted(Counter(moments).items()):
                print(f'  {count} x {moment}')


if __name__ == '__main__':
    main(int(sys.argv[1]), tuple(map(int, sys.argv[2:])) or (1, 2))
