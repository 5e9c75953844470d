"""`benchmarks/gpu.sh` and `benchmarks/kernels.py` as far as they go without a GPU."""

import csv
import inspect
import itertools
import os
import subprocess
import sys

import pytest
import torch
from processes import ROOT

from benchmarks import kernels
from timm_sk import timing
from timm_sk.bench import bandwidth, cases
from timm_sk.bench.bandwidth import StageRow, difference, measure_stages
from timm_sk.bench.cases import variants
from timm_sk.bench.stages import operations, unit_stages
from timm_sk.cli_bench import bench

SCRIPT = ROOT / 'benchmarks' / 'gpu.sh'
CPU = torch.device('cpu')
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *get_device_name*) echo NVIDIA_Stand_in ;;
  '-c '*) ;;
  *) echo "$*" >> "$LOG"; if [[ $* == *"$FAILING"* ]]; then exit 3; fi ;;
esac
"""


def gpu_sh(**environment):
    return subprocess.run([SCRIPT], env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def stand_in(tmp_path):
    """An interpreter that sees a GPU, writes down what it is to run, and fails where it is told to."""
    path = tmp_path / 'python'
    path.write_text(STAND_IN)
    path.chmod(0o755)
    log = tmp_path / 'log'

    def run(failing='nothing', **environment):
        log.write_text('')
        done = gpu_sh(PYTHON=str(path), OUT=str(tmp_path), LOG=str(log), FAILING=failing, **environment)
        return done, log.read_text().splitlines()

    return run


def test_syntax_and_no_gpu(tmp_path):
    subprocess.run(['bash', '-n', SCRIPT], check=True)
    done = gpu_sh(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='', OUT=str(tmp_path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, '', 1)
    assert 'there is no NVIDIA GPU here' in done.stderr
    assert not list(tmp_path.iterdir())


def test_steps_go_on_after_one_that_fails(stand_in, tmp_path):
    done, ran = stand_in()
    assert (done.returncode, done.stderr) == (0, '')
    assert ran[0].startswith('-m pytest -q -m gpu')
    assert ran[1] == f'benchmarks/kernels.py --out {tmp_path}/kernels_NVIDIA_Stand_in.csv'
    models = [line for line in ran if line.startswith('-m timm_sk bench')]
    tail = f'--device cuda --dtypes bfloat16 --formats channels_last --out {tmp_path}/models_NVIDIA_Stand_in.csv'
    assert all(line.endswith(tail) for line in models)
    for wanted in ('--batch 256 --forms eager,deployed', '--batch 128 --forms compiled', '--batch 1 --forms deployed'):
        assert any(wanted in line for line in models)
    done, again = stand_in(failing='-m pytest')
    assert again == ran
    assert (done.returncode, done.stderr) == (1, 'failed: tests (exit code 3)\n')


def test_what_time_is_not_left_for_is_named(stand_in):
    done, ran = stand_in(BUDGET='5')
    assert (done.returncode, ran) == (0, [])
    assert 'no time left: tests\nno time left: kernels and one unit\n' in done.stdout


def test_every_bench_command_is_one_of_the_bench(stand_in):
    _, ran = stand_in()
    for line in ran[2:]:
        arguments = line.split()[3:]
        names = list(itertools.takewhile(lambda word: not word.startswith('--'), arguments))
        given = dict(zip(arguments[len(names) :: 2], arguments[len(names) + 1 :: 2], strict=True))
        assert set(given) <= {
            f'--{parameter.replace("_file", "")}' for parameter in inspect.signature(bench).parameters
        }
        settings = dict(
            dtypes=[given['--dtypes']], memory_formats=[given['--formats']], tasks=given['--tasks'].split(',')
        )
        sides = given.get('--sides', 'ours,timm,plain').split(',')
        for case in cases(names, batch=int(given['--batch']), **settings):
            assert variants(case, forms=given['--forms'].split(','), sides=sides)


def test_bytes_are_the_least_traffic():
    shape, place = [2, 16, 8, 8], dict(dtype=torch.bfloat16, memory_format=torch.channels_last, device=CPU)
    for branches in (1, 2, 3):
        tensor, logits, descriptor = 2 * 16 * 64 * 2, 2 * branches * 16 * 2, 2 * 16 * 2
        assert {stage.name: stage.least_bytes for stage in operations(shape, branches=branches, **place)} == {
            'copy': 2 * tensor,
            'fuse': branches * tensor + descriptor,
            'select': (branches + 1) * tensor + logits,
            'select_backward': (2 * branches + 1) * tensor + 2 * logits,
        }
        *stages, unit = unit_stages(shape, branches=branches, groups=4, **place)
        weights = 2 * branches * (16 * 4 * 9 + 16)
        mlp = 2 * (16 * 32 + 32 + 32 * 16 * branches)
        assert {stage.name: stage.least_bytes for stage in stages} == {
            'unit_split': (1 + branches) * tensor + weights,
            'unit_fuse': branches * tensor + descriptor,
            'unit_mlp': descriptor + mlp + logits,
            'unit_select': (branches + 1) * tensor + logits,
        }
        assert unit.least_bytes == sum(stage.least_bytes for stage in stages)


def test_the_stages_of_a_unit_make_the_unit():
    place = dict(dtype=torch.float32, memory_format=torch.contiguous_format, device=CPU)
    *stages, unit = unit_stages([2, 16, 8, 8], branches=2, groups=4, **place)
    for index in range(4):
        (selected,) = stages[-1].step(index)
        torch.testing.assert_close(selected, unit.step(index)[0])
    assert torch.equal(unit.step(0)[0], unit.step(3)[0])
    assert not torch.equal(unit.step(0)[0], unit.step(1)[0])
    torch.testing.assert_close(unit.step(0)[0], unit.expected()[0])


def test_smoke(tmp_path, capsys):
    file = tmp_path / 'kernels.csv'
    assert kernels.main(['--device', 'cpu', '--smoke', '--dtypes', 'float32,bfloat16', '--out', str(file)]) == 0
    with file.open(newline='') as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == StageRow.columns()
    selection = ['copy', *(name for name in ('fuse', 'select', 'select_backward') for _ in range(2))]
    unit = ['copy', 'unit_split', 'unit_fuse', 'unit_mlp', 'unit_select', 'unit']
    assert [row['stage'] for row in rows] == (selection + unit) * 4
    assert {row['implementation'] for row in rows} == {'torch', 'law'}
    assert [row['memory_format'] for row in rows[:: len(selection + unit)]] == ['contiguous', 'channels_last'] * 2
    for row in rows:
        compared = row['stage'] in ('fuse', 'select', 'select_backward', 'unit')
        assert row['status'] == ('agrees' if compared else '')
        assert row['difference'] == '' or float(row['difference']) <= float(row['bound'])
        assert not any(row[name] for name in StageRow.columns() if 'ms' in name or 'of_copy' in name)
        assert bool(row['groups']) == (row['stage'].startswith('unit') or row['groups'] == '4')
    assert 'no Triton kernel ran' in capsys.readouterr().err


def test_times_are_shares_of_the_copys_bandwidth():
    row = StageRow(
        stage='select', dtype='', memory_format='', batch=1, channels=1, height=1, width=1, branches=2, least_bytes=300
    )
    bandwidth._enter_times(row, [3.0, 6.0, 12.0], copy=[2.0, 2.0, 4.0], copy_bytes=200)
    assert (row.min_ms, row.median_ms, row.max_ms) == (3.0, 6.0, 12.0)
    assert row.gb_per_s == pytest.approx(300 / 6e-3 / 1e9)
    assert (row.of_copy_min, row.of_copy_median, row.of_copy_max) == (0.5, 0.5, 1.0)
    assert row.floor_ms == 3.0


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(timing, 'ROUND_SECONDS', 1e-3)


def test_timed_rows(short_rounds):
    rows = measure_stages([1, 8, 8, 8], branches=2, groups=2, dtype='float32', memory_format='contiguous', device=CPU)
    for row in rows:
        assert row.rounds == 7
        assert row.of_copy_min <= row.of_copy_median <= row.of_copy_max
        assert row.stage != 'copy' or row.of_copy_median == 1
    assert f'{rows[1].of_copy_median:8.3f}  agrees' in kernels.table(rows)


def test_what_disagrees_with_the_law_is_not_timed(monkeypatch, short_rounds):
    monkeypatch.setattr('timm_sk.ops.lean._weigh', lambda branches, logits, gate, **_: branches[1] * 1.0)
    rows = measure_stages([1, 8, 8, 8], branches=2, groups=2, dtype='float32', memory_format='contiguous', device=CPU)
    wrong = [row for row in rows if row.status == 'disagrees']
    assert [(row.stage, row.implementation) for row in wrong] == [('select', 'torch'), ('unit', 'torch')]
    assert not any(row.median_ms for row in wrong)
    assert kernels.main(['--device', 'cpu', '--smoke', '--dtypes', 'float32']) == 1
    good = torch.tensor([1.0, 2.0])
    assert difference((good, good * torch.nan), (good, good)) != difference((good,), (good,)) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', '3'], 'A median takes at least 7 rounds'),
        (['--dtypes', 'int8'], 'There is no dtype "int8"'),
        (['--dtypes', 'float16'], 'float16 is measured on CUDA alone'),
        (['--formats', 'nhwc'], 'There is no memory format "nhwc"'),
        (['--out', 'pyproject.toml'], 'is a CSV with other columns'),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert kernels.main(['--device', 'cpu', *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f'kernels.py: {message}') or message in printed
    assert printed.count('\n') == 1
