"""`timm-sk bench`: its CSV, its errors and its plots."""

import pytest
import timm
import torch
from typer.testing import CliRunner

from timm_sk.bench import COLUMNS, Row, forms
from timm_sk.bench.plot import figure_of
from timm_sk.bench.results import read
from timm_sk.cli import app

SMALL = ('--size', 64, '--batch', 2, '--formats', 'channels_last', '--dtypes', 'float32', '--sides', 'ours')


def timm_sk_bench(*arguments):
    return CliRunner().invoke(app, ['bench', *map(str, arguments)])


def test_smoke(tmp_path):
    file = tmp_path / 'smoke.csv'
    done = timm_sk_bench('--smoke', 'skresnet18', '--sides', 'ours,timm', '--out', file)
    assert done.exit_code == 0, done.output
    rows = read(file)
    inference = [('timm', 'eager'), ('ours', 'eager'), ('convolutions', 'eager'), ('ours', 'reparameterized')]
    training = [('timm', 'eager'), ('ours', 'eager'), ('convolutions', 'eager')]
    assert [(row['side'], row['form']) for row in rows] == (inference * 2) + (training * 2)
    assert [row['dtype'] for row in rows] == ['float32'] * 4 + ['bfloat16'] * 4 + ['float32'] * 3 + ['bfloat16'] * 3
    for row in rows:
        assert row['status'] == ('' if row['side'] == 'convolutions' else 'agrees')
        assert row['baseline'] == ('timm eager' if row['side'] == 'ours' else '')
        assert not any(row[name] for name in COLUMNS if 'ms' in name or 'ratio_' in name or 'rounds' in name)
        assert (row['device'], row['torch'], row['timm']) == ('cpu', torch.__version__, timm.__version__)
        if row['side'] != 'convolutions':
            assert float(row['difference']) <= float(row['bound'])
            assert int(row['peak_bytes']) > 4 * 2 * 64 * 32 * 32  # the stem's output in float32, or 2 of it in bfloat16
        if row['side'] == 'ours' and row['task'] == 'training':
            assert 0.1 < float(row['saved_ratio']) < 1
    assert 'images/s' not in done.output


def test_other_model_disagrees(tmp_path, monkeypatch):
    build = forms.build
    made = []

    def build_another(side, arch, **kwargs):
        made.append(side)
        return timm.create_model(arch, act_layer='silu') if side == 'ours' else build(side, arch, **kwargs)

    monkeypatch.setattr(forms, 'build', build_another)
    file = tmp_path / 'refused.csv'
    done = timm_sk_bench('skresnet18', *SMALL, '--forms', 'eager', '--tasks', 'inference', '--out', file)
    assert done.exit_code == 1
    assert set(made) == {'ours', 'timm'}
    timms, ours, convolutions = read(file)
    assert (timms['side'], timms['status'], ours['status']) == ('timm', 'agrees', 'disagrees')
    speeds = [name for name in COLUMNS if name in ('rounds', 'images_per_s', 'of_convolutions_median') or '_ms' in name]
    assert all(timms[name] for name in speeds)
    assert all(convolutions[name] for name in speeds if name != 'of_convolutions_median')
    assert not any(ours[name] for name in (*speeds, 'ratio_median', 'peak_bytes'))
    assert float(ours['difference']) > 100 * float(ours['bound'])
    line = next(line for line in done.output.splitlines() if 'ours eager' in line and 'disagrees' in line)
    assert line.split()[:3] == ['ours', 'eager', 'disagrees']  # without numbers before
    assert 'output differs by' in done.output


def test_failed_form(tmp_path, monkeypatch):
    def deploy(model, **settings):
        raise ValueError('not on this device')

    monkeypatch.setattr(forms, 'deploy', deploy)
    file = tmp_path / 'failed.csv'
    done = timm_sk_bench('sknet_atto', '--smoke', '--size', 32, '--forms', 'eager,deployed', '--out', file)
    assert done.exit_code == 1
    rows = read(file)
    assert [(row['form'], row['status']) for row in rows][:3] == [
        ('eager', 'agrees'),
        ('eager', ''),
        ('deployed', 'fails'),
    ]
    assert [row['status'] for row in rows if row['task'] == 'training'] == ['agrees', ''] * 2
    assert 'ours deployed inference fails: ValueError: not on this device' in done.output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', 3], 'Too few rounds: 3. Pass at least 7, or --smoke, which times nothing.'),
        (['--device', 'cuda:7'], 'Device "cuda:7" not found: this machine has'),
        (['--device', 'mps'], 'Invalid device "mps": expected cpu, cuda or cuda:<index>'),
        (['--device', 'gpu'], 'Invalid device "gpu": expected cpu, cuda or cuda:<index>'),
        (['--dtypes', 'float32,float16'], 'float16 is measured on CUDA only: pass bfloat16 on a CPU.'),
        (
            ['--forms', 'fused'],
            'Unknown form "fused": expected eager, reparameterized, folded, folded_merged, folded_joined, '
            'deployed, merged, compiled, inductor, max_autotune, eager+graph,',
        ),
        (['--forms', 'eager,folded+graph'], 'CUDA graphs need a CUDA GPU, got folded+graph on cpu: omit it, or pass'),
        (['--tasks', 'training', '--batch', 1], 'Nothing to measure: a training step needs at least 2 images.'),
        (['--smoke', '--out', 'pyproject.toml'], 'pyproject.toml is a CSV with other columns: pass a new file.'),
        (['--from', 'x.csv'], '--from needs --plot PNG, the file to draw.'),
        (['--plot', 'x.png', '--from', 'pyproject.toml'], 'pyproject.toml is not a CSV of timm-sk bench'),
    ],
)
def test_invalid_arguments(arguments, message):
    done = timm_sk_bench('skresnet18', *arguments)
    assert done.exit_code == 1
    assert done.output.startswith(f'timm-sk: {message}')
    assert done.output.count('\n') == 1


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr('timm_sk.optional_packages.find_spec', lambda name: None)
    done = timm_sk_bench('--plot', 'x.png', '--from', 'x.csv')
    message = 'timm-sk: matplotlib is not installed: pip install "timm_sk[bench]".\n'
    assert (done.exit_code, done.output) == (1, message)


def result(arch, side, form, **values):
    shape = dict(dtype='float32', memory_format='channels_last', task='inference', batch=8, size=224)
    row = Row(arch=arch, side=side, form=form, device='cpu', processor='a CPU', **(shape | values))
    return dict(zip(COLUMNS, row.cells(), strict=True))


def ratio(median):
    return dict(median_ms=10.0, ratio_min=median - 0.1, ratio_median=median, ratio_max=median + 0.2)


def test_ratio_bars(tmp_path):
    rows = [
        result('skresnet34', 'timm', 'eager', median_ms=20.0),
        result('skresnet34', 'ours', 'eager', **ratio(9.0)),
        result('skresnet34', 'ours', 'eager', **ratio(1.25)),  # the later row counts
        result('skresnet34', 'ours', 'reparameterized', **ratio(1.5)),
        result('resnest50d', 'plain', 'eager', **ratio(2.0)),
        result('resnest50d', 'plain', 'eager+graph', **ratio(2.5)),
        result('skresnet34', 'convolutions', 'eager', median_ms=5.0),
    ]
    figure = figure_of(rows)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ['inference, float32, channels_last, 8x3x224x224']
    assert [bar.get_height() for bar in shown[0].patches] == [1.25, 1.5, 2.0, 2.5]
    assert [bar.get_hatch() or '' for bar in shown[0].patches] == ['', '', '', '//']
    assert [label.get_text() for label in shown[0].get_xticklabels()] == ['skresnet34', 'resnest50d']
    file = tmp_path / 'results.csv'
    file.write_text('\n'.join([','.join(COLUMNS), *(','.join(row.values()) for row in rows)]))
    assert timm_sk_bench('--plot', tmp_path / 'ratios.png', '--from', file).exit_code == 0
    assert (tmp_path / 'ratios.png').read_bytes().startswith(b'\x89PNG')


def test_scaling_lines():
    rows = [
        result('skresnet34', side, 'eager', scaling='batch', batch=n, median_ms=10.0 * n, peak_bytes=2_000_000 * n)
        for n in (4, 1, 2)
        for side in ('ours', 'timm')
    ]
    time, memory = figure_of(rows).axes
    assert [list(line.get_xdata()) for line in time.lines] == [[1, 2, 4]] * 2
    assert list(time.lines[0].get_ydata()) == [10, 20, 40]
    assert list(memory.lines[0].get_ydata()) == [2, 4, 8]
    assert (time.get_xscale(), time.get_yscale()) == ('log', 'log')
    with pytest.raises(ValueError, match='timed rows of one kind, got , batch'):
        figure_of([*rows, result('skresnet34', 'ours', 'eager', **ratio(1.0))])
    with pytest.raises(ValueError, match='no timed row'):
        figure_of([])
