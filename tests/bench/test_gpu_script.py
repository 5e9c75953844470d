"""`benchmarks/gpu.sh` and `benchmarks/kernels.py` as far as they go without a GPU."""

import csv
import os
import subprocess
import sys
from functools import partial

import bandwidth
import pytest
import torch
import typer
from bandwidth import StageRow, difference, measure_stages
from stages import Place, operations, unit_stages
from subprocesses import ROOT

from benchmarks import kernels
from timm_sk.bench import cases
from timm_sk.bench.matrix import variants
from timm_sk.cli import app
from timm_sk.inference.timing import interleave

SCRIPT = ROOT / 'benchmarks' / 'gpu.sh'
CPU = torch.device('cpu')
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *get_device_name*) if [[ -n $WARNING ]]; then echo "$WARNING" >&2; exit 3; fi; echo NVIDIA_Stand_in ;;
  *find_spec*) echo "$MISSING" ;;
  '-c '*) ;;
  *) echo "$*" >> "$LOG"; if [[ $* == *"$FAILING"* ]]; then echo "E   broken"; exit 3; fi ;;
esac
"""
DRIVER = (
    'torch/cuda/__init__.py:180: UserWarning: CUDA initialization: The NVIDIA driver on your system is too old '
    '(found version 11040). Please update your GPU driver.'
)


def gpu_sh(phase, **environment):
    return subprocess.run([SCRIPT, phase], env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def stand_in(tmp_path):
    """Runs the script with an interpreter that sees a GPU, logs its arguments, and fails on those of `FAILING`."""
    path = tmp_path / 'python'
    path.write_text(STAND_IN)
    path.chmod(0o755)
    log = tmp_path / 'log'

    def run(phase, **environment):
        log.write_text('')
        settings = dict(PYTHON=str(path), OUT=str(tmp_path), LOG=str(log), FAILING='nothing', MISSING='', WARNING='')
        done = gpu_sh(phase, **settings | environment)
        return done, log.read_text().splitlines()

    return run


def test_syntax_and_no_gpu(tmp_path):
    subprocess.run(['bash', '-n', SCRIPT], check=True)
    done = gpu_sh('check', PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='', OUT=str(tmp_path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, '', 1)
    assert 'torch sees no NVIDIA GPU here' in done.stderr
    assert not list(tmp_path.iterdir())
    assert (gpu_sh('all').returncode, gpu_sh('all').stderr) == (2, 'usage: benchmarks/gpu.sh check|measure\n')


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        (dict(WARNING=DRIVER), 'so nothing was run (CUDA initialization: The NVIDIA driver on your system is too old'),
        (dict(MISSING='timm pytest_timeout'), "not installed: timm pytest_timeout; pip install -e '.[test]', or put"),
        (dict(PYTHON='/nowhere/python'), 'cannot run /nowhere/python'),
    ],
)
def test_missing_requirements(stand_in, environment, message):
    done, ran = stand_in('measure', **environment)
    assert (done.returncode, done.stdout, ran) == (2, '', [])
    assert message in done.stderr.splitlines()[-1]


def test_check(stand_in, tmp_path):
    done, ran = stand_in('check')
    assert (done.returncode, done.stderr) == (0, '')
    tests = [line for line in ran if line.startswith('-m pytest -q')]
    assert len(tests) == 5
    assert all('--maxfail=9' in line and '--timeout=55' in line and ' -n ' in line for line in tests)
    files = {path for line in tests for path in line.split() if path.startswith('tests/')}
    assert all((ROOT / path).exists() for path in files)
    (kernels,) = (line for line in ran if 'benchmarks/kernels.py' in line)
    assert kernels.endswith(f'--out {tmp_path}/kernels_NVIDIA_Stand_in.csv --formats channels_last')


@pytest.mark.parametrize(
    ('phase', 'failing', 'name'),
    [('check', 'two_branch.py', 'two branches'), ('measure', 'eager,merged', 'sknet50 training')],
)
def test_steps_run_after_a_failed_one(stand_in, phase, failing, name):
    _, ran = stand_in(phase)
    done, again = stand_in(phase, FAILING=failing)
    assert (done.returncode, again) == (1, ran)
    assert all(name in line and '(exit code 3)' in line for line in done.stderr.splitlines())
    assert ('1 E   broken' in done.stdout) == (phase == 'check')


def test_steps_without_time_are_listed(stand_in):
    done, ran = stand_in('check', BUDGET='5')
    assert (done.returncode, ran) == (0, [])
    assert 'no time left: machine\nno time left: registration and units\n' in done.stdout


@pytest.mark.deep
def test_slow_step_is_stopped(stand_in, tmp_path):
    slow = tmp_path / 'slow'
    slow.write_text(f'#!/usr/bin/env bash\n{tmp_path}/python "$@"\nif [[ $1 != -c ]]; then sleep 20; fi\n')
    slow.chmod(0o755)
    done, ran = stand_in('measure', BUDGET='11', PYTHON=str(slow))
    assert done.returncode == 1
    assert done.stderr.startswith('failed: convolutions (stopped after ')
    assert len(ran) == 1


def test_order_of_measurements(stand_in, tmp_path):
    _, ran = stand_in('measure')
    command = typer.main.get_command(app).commands['bench']
    measured = []
    for line in ran:
        if not line.startswith('-m timm_sk bench'):
            continue
        given = command.make_context('bench', line.split()[3:]).params
        assert given['out_file'] == tmp_path / 'models_NVIDIA_Stand_in.csv'
        dtypes, formats, tasks, forms, sides = (
            given[name].split(',') for name in ('dtypes', 'formats', 'tasks', 'forms', 'sides')
        )
        for case in cases(given['models'], dtypes=dtypes, memory_formats=formats, tasks=tasks, batch=given['batch']):
            chosen = variants(case, forms=forms, sides=sides)
            measured += [f'{case.arch} {case.task} {case.batch} {variant.form}' for variant in chosen]
    order = [
        'sknet50 inference 128 folded_joined+graph',
        'sknet50 training 128 merged',
        'skresnet34 inference 128 deployed',
        'resnest50d training 128 eager',
        'sknet50 inference 1 folded_merged+graph',
        'sknet50 inference 128 inductor',
        'sknet50 inference 1 compiled+graph',
        'sknet50 training 128 compiled',
        'sknet50 inference 128 max_autotune',
    ]
    places = [measured.index(name) for name in order]
    assert places == sorted(places)
    assert {name.split()[0] for name in measured if 'max_autotune' in name} == {'sknet50'}


def test_least_bytes():
    shape, place = [2, 16, 8, 8], Place(torch.bfloat16, torch.channels_last, CPU)
    for branches in (1, 2, 3):
        tensor, logits, descriptor = 2 * 16 * 64 * 2, 2 * branches * 16 * 2, 2 * 16 * 2
        assert {stage.name: stage.least_bytes for stage in operations(shape, place, branches=branches)} == {
            'copy': 2 * tensor,
            'fuse': branches * tensor + descriptor,
            'select': (branches + 1) * tensor + logits,
            'select_backward': (2 * branches + 1) * tensor + 2 * logits,
        }
        *stages, unit = unit_stages(shape, place, branches=branches, groups=4)
        weights = 2 * branches * (16 * 4 * 9 + 16)
        mlp = 2 * (16 * 32 + 32 + 32 * 16 * branches)
        assert {stage.name: stage.least_bytes for stage in stages} == {
            'unit_split': (1 + branches) * tensor + weights,
            'unit_fuse': branches * tensor + descriptor,
            'unit_mlp': descriptor + mlp + logits,
            'unit_select': (branches + 1) * tensor + logits,
        }
        assert unit.least_bytes == sum(stage.least_bytes for stage in stages)


def test_stages_of_a_unit():
    place = Place(torch.float32, torch.contiguous_format, CPU)
    *stages, unit = unit_stages([2, 16, 8, 8], place, branches=2, groups=4)
    for index in range(4):
        (selected,) = stages[-1].step(index)
        torch.testing.assert_close(selected, unit.step(index)[0])
    assert torch.equal(unit.step(0)[0], unit.step(3)[0])
    assert not torch.equal(unit.step(0)[0], unit.step(1)[0])
    torch.testing.assert_close(unit.step(0)[0], unit.expected()[0])


def test_smoke(tmp_path, capsys):
    file = tmp_path / 'kernels.csv'
    assert kernels.main(['--device', 'cpu', '--smoke', '--dtypes', 'float32,bfloat16', '--out', str(file)]) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert tuple(rows[0]) == StageRow.columns()
    selection = ['copy', *(name for name in ('fuse', 'select', 'select_backward') for _ in range(2))]
    unit = ['copy', 'unit_split', 'unit_fuse', 'unit_mlp', 'unit_select', 'unit']
    assert [row['stage'] for row in rows] == (selection + unit) * 4
    assert {row['implementation'] for row in rows} == {'torch', 'reference'}
    assert [row['memory_format'] for row in rows[:: len(selection + unit)]] == ['contiguous', 'channels_last'] * 2
    for row in rows:
        compared = row['stage'] in ('fuse', 'select', 'select_backward', 'unit')
        assert row['status'] == ('agrees' if compared else '')
        assert row['difference'] == '' or float(row['difference']) <= float(row['bound'])
        assert not any(row[name] for name in StageRow.columns() if 'ms' in name or 'of_copy' in name)
        assert bool(row['groups']) == (row['stage'].startswith('unit') or row['groups'] == '4')
    assert 'no Triton kernel ran' in capsys.readouterr().err


def test_shares_of_the_copys_bandwidth():
    row = StageRow(
        stage='select', dtype='', memory_format='', batch=1, channels=1, height=1, width=1, branches=2, least_bytes=300
    )
    bandwidth._enter_times(row, [3.0, 6.0, 12.0], copy=[2.0, 2.0, 4.0], copy_bytes=200)
    assert (row.min_ms, row.median_ms, row.max_ms) == (3.0, 6.0, 12.0)
    assert row.gb_per_s == pytest.approx(300 / 6e-3 / 1e9)
    assert (row.of_copy_min, row.of_copy_median, row.of_copy_max) == (0.5, 0.5, 1.0)
    assert row.least_ms == 3.0


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(bandwidth, 'interleave', partial(interleave, round_seconds=1e-3))


def stage_rows():
    setting = dict(branches=2, groups=2, dtype='float32', memory_format='contiguous', device=CPU)
    return [row for rows in measure_stages([1, 8, 8, 8], **setting) for row in rows]


def test_timed_rows(short_rounds):
    rows = stage_rows()
    for row in rows:
        assert row.rounds == 7
        assert row.of_copy_min <= row.of_copy_median <= row.of_copy_max
        assert row.stage != 'copy' or row.of_copy_median == 1
    assert f'{rows[1].of_copy_median:8.3f}  agrees' in kernels.table(rows)


def test_disagreeing_stages_are_not_timed(monkeypatch, short_rounds):
    monkeypatch.setattr('timm_sk.ops.eager._weigh', lambda branches, logits, gate, **_: branches[1] * 1.0)
    rows = stage_rows()
    wrong = [row for row in rows if row.status == 'disagrees']
    assert [(row.stage, row.implementation) for row in wrong] == [('select', 'torch'), ('unit', 'torch')]
    assert not any(row.median_ms for row in wrong)
    assert kernels.main(['--device', 'cpu', '--smoke', '--dtypes', 'float32']) == 1
    good = torch.tensor([1.0, 2.0])
    assert difference((good, good * torch.nan), (good, good)) != difference((good,), (good,)) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', '3'], 'Too few rounds: 3'),
        (['--dtypes', 'int8'], 'Unknown dtype "int8"'),
        (['--formats', 'nhwc'], 'Unknown memory format "nhwc"'),
        (['--out', 'pyproject.toml'], 'is a CSV with other columns'),
    ],
)
def test_invalid_arguments(arguments, message, capsys):
    assert kernels.main(['--device', 'cpu', *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f'kernels.py: {message}') or message in printed
    assert printed.count('\n') == 1
