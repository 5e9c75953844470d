"""`benchmarks/input_pipeline.py` on a few small images, without a check of speeds."""

import csv

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import input_pipeline

pytestmark = pytest.mark.deep

SMALL = ('--model', 'sknet_atto', '--batch-size', '2', '--size', '32', '--file-size', '40', '--images', '32')

app = typer.Typer()
app.command()(input_pipeline.main)


def run(*arguments):
    return CliRunner().invoke(app, [*SMALL, *map(str, arguments)])


def test_small_run(tmp_path):
    file = tmp_path / 'pipeline.csv'
    done = run('--smoke', '--rounds', 2, '--batches', 2, '--workers', '0,1', '--with-step', '0,1', '--out', file)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert tuple(rows[0]) == input_pipeline.PipelineRow.columns()
    assert [(row['what'], row['workers'], row['batches']) for row in rows] == [
        ('step', '', '2'),
        ('loading', '0', '8'),
        ('loading', '1', '8'),
        ('both', '0', '2'),
        ('both', '1', '2'),
    ]
    for row in rows:
        settings = [row[name] for name in ('model', 'batch', 'size', 'file_size', 'rounds', 'threads', 'torch')]
        assert settings == ['sknet_atto', '2', '32', '40', '2', '1', torch.__version__]
        least, median, most = (float(row[f'{name}_images_per_s']) for name in ('min', 'median', 'max'))
        assert 0 < least <= median <= most
        shares = [row[f'{name}_waiting'] for name in ('min', 'median', 'max')]
        if row['what'] == 'both':
            least, median, most = map(float, shares)
            assert 0 < least <= median <= most < 1
        else:
            assert shares == [''] * 3
    assert done.output.splitlines()[0].startswith('sknet_atto, batch 2, 32x32, ')
    assert len(done.output.splitlines()) == 7


def test_waiting_time(monkeypatch):
    """A loader and a step whose times are known; the first and the last batch are not timed."""
    now = 0.0

    class Loader(list):
        def epoch(self, epoch):
            nonlocal now
            for batch in self:
                now += batch
                yield batch

    def step(batch):
        nonlocal now
        now += 10
        stepped.append(batch)

    stepped = []
    monkeypatch.setattr(input_pipeline.time, 'perf_counter', lambda: now)
    taken = input_pipeline.loading(Loader([100, 1, 2, 3, 100]), 3, 0, step)
    assert (taken.seconds, taken.waiting) == (36, 6)
    assert stepped == [100, 1, 2, 3]
    assert input_pipeline.loading(Loader([100, 1, 2, 100]), 2, 0).seconds == 3


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', 3], 'Too few rounds: 3.'),
        (['--batches', 9], 'A round loads 88 images, got 32: draw more, or time fewer batches.'),
        (['--out', 'pyproject.toml'], 'pyproject.toml is a CSV with other columns'),
        (['--device', 'gpu'], 'Invalid device "gpu": expected cpu, cuda or cuda:<index>'),
    ],
)
def test_invalid_arguments(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.output.startswith(f'timm-sk: {message}')
    assert done.output.count('\n') == 1
