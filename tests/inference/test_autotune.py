"""Autotuning: steps timed in turn, the margin of the fastest candidate, and the file of earlier results."""

import json

import pytest
import torch

from timm_sk.inference import autotune, timing
from timm_sk.pretrained import store_root

CPU = torch.device('cpu')


def test_interleave():
    calls = []
    steps = {name: lambda index, name=name: calls.append((name, index)) for name in 'AB'}
    times, repeats = timing.interleave(steps, rounds=7, device=CPU)
    assert calls[:4] == [('A', 0), ('B', 0), ('A', 1), ('B', 1)]
    timed = calls[4:]
    assert [name for name, _ in timed[::repeats]] == list('AB') * 7
    assert [index for _, index in timed[:repeats]] == list(range(repeats))
    assert {name: len(values) for name, values in times.items()} == {'A': 7, 'B': 7}
    with pytest.raises(ValueError, match='Too few rounds: 3'):
        timing.interleave(steps, rounds=3, device=CPU)


def test_ratios():
    assert timing.ratios([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == [2.0, 1.0, 0.5]
    assert timing.summarize([3.0, 1.0, 2.0, 10.0]) == (1.0, 2.5, 10.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test lets them."""
    now = [0.0]
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    return now


def test_graph_replays_are_timed(clock, monkeypatch):
    """A launch takes 30 us of the host, the kernels of one candidate 9 us and those of the other 2 us."""
    milliseconds = timing._milliseconds
    seconds = {8: 9e-6, 2: 2e-6}
    launched, recording = [], []

    def run(number: int) -> None:
        launched.append(number)
        clock[0] += 30e-6

    def capture(sample):
        launched.clear()
        sample()
        recording.append(list(launched))
        work = sum(seconds[number] for number in launched)

        def replay() -> None:
            clock[0] += work

        return replay

    runs = {8: lambda: run(8), 2: lambda: run(2)}
    monkeypatch.setattr(autotune, '_graph', lambda sample, device: capture(sample))
    monkeypatch.setattr(timing, '_milliseconds', lambda replay, device: milliseconds(replay, CPU))
    times = autotune.measure(runs, torch.device('cuda'))
    assert recording == [[8] * 20, [2] * 20]
    assert times == {8: pytest.approx([9e-3] * 7), 2: pytest.approx([2e-3] * 7)}
    assert autotune.pick_fastest(times, 8) == 2
    assert autotune.pick_fastest(autotune.measure(runs, CPU), 8) == 8


def test_pick_fastest():
    assert autotune.pick_fastest({32: [2.0, 2.1, 9.0], 4: [1.0, 1.1, 1.0], 8: [1.2, 0.1, 1.2]}, 32) == 4
    assert autotune.pick_fastest({32: [1.0, 1.0, 1.0], 4: [0.96, 0.96, 0.96]}, 32) == 32
    assert autotune.pick_fastest({32: [1.0, 1.0, 1.0], 4: [0.94, 0.94, 0.94]}, 32) == 4
    assert autotune.pick_fastest({32: [1.0], 4: [2.0]}, 32) == 32


def fastest(measured, *, remember=True):
    """What a new cache gives if the measurement gave `measured`."""
    cache = autotune.AutotuneCache(remember=remember)
    found = cache.fastest('key', [8, 4, 2, 1], lambda: measured)
    assert cache.fastest('key', [8, 4, 2, 1], lambda: None) == found
    cache.save()
    return found


def test_results_are_remembered():
    path = store_root() / autotune.FILE_NAME
    assert fastest(2, remember=False) == 2
    assert not path.exists()
    assert fastest(4) == fastest(2) == 4
    assert fastest(2, remember=False) == 2
    assert json.loads(path.read_text()) == dict(format_version=1, key=4)
    assert list(path.parent.glob('autotune*')) == [path]


@pytest.mark.all_cases
@pytest.mark.parametrize(
    'content',
    [
        '{"half',
        '[1, 2]',
        '{"key": 4}',
        '{"format_version": 2, "key": 4}',
        '{"format_version": 1, "key": 3}',
        '{"format_version": 1, "key": "four"}',
        '{"format_version": 1, "key": true}',
        '{"format_version": 1, "key": [4]}',
    ],
)
def test_other_file_contents_are_ignored(content):
    path = store_root() / autotune.FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert fastest(2) == 2
    assert json.loads(path.read_text()) == dict(format_version=1, key=2)


def test_unwritable_store(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / 'file' / 'store'))
    assert fastest(2) == 2
