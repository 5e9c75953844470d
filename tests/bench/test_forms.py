"""The forms that a CPU does not measure, or only in minutes: what they ask of torch and of `deploy`."""

from dataclasses import replace

import pytest
import torch
from variants import pictures

import timm_sk
from timm_sk.bench import Case, Variant, forms, measure, run
from timm_sk.bench.counterparts import build
from timm_sk.bench.forms import prepare
from timm_sk.cuda_graph import Recording

CPU = torch.device('cpu')
CASE = Case(arch='sknet_atto', dtype='float32', memory_format='channels_last', task='inference', batch=2, size=32)


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled, and how; it runs as it is."""
    found = []

    def compile(model, **options):
        found.append((type(model).__name__, options))
        return lambda x: model(x)

    monkeypatch.setattr(torch, 'compile', compile)
    return found


@pytest.fixture
def captured(monkeypatch):
    """The inputs of recordings, which compute on the CPU."""
    found = []

    def record(forward, x):
        found.append(x)
        made = forward(x)
        return Recording(given=x, made=made, replay=lambda: made.copy_(forward(x)), turn=torch.no_grad)

    monkeypatch.setattr('timm_sk.cuda_graph.record', record)
    return found


def step_of(side, form, task='inference'):
    case = replace(CASE, task=task)
    return prepare(Variant(side, form), case, build('ours', 'sknet_atto').eval(), [pictures(size=32)], torch.arange(2))


def test_max_autotune_compiles_for_itself(compiled):
    step = step_of('ours', 'max_autotune')
    assert compiled == [('StemPoolResNet', dict(mode='max-autotune-no-cudagraphs'))]
    assert type(step.module).__name__ == 'Deployed'
    assert torch.equal(step(), step.module(step.pictures[0]))
    compiled.clear()
    step_of('timm', 'max_autotune')
    step_of('ours', 'max_autotune', 'training')
    step_of('timm', 'compiled')
    assert [options for _, options in compiled] == [dict(mode='max-autotune-no-cudagraphs')] * 2 + [{}]


def test_both_sides_are_graphed_by_the_same_means(compiled, captured):
    step = step_of('timm', 'graphed')
    assert compiled == [('StemPoolResNet', {})]
    (x,) = captured
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, step.pictures[0])
    expected = step.module(step.pictures[0])
    x.zero_()
    assert torch.equal(step(), expected)


def test_ours_is_deployed_with_a_graph(monkeypatch):
    asked = {}
    monkeypatch.setattr(timm_sk, 'deploy', lambda model, **settings: asked.update(settings) or model)
    step_of('ours', 'graphed')
    assert (asked['compile'], asked['cuda_graph'], asked['batch_size']) == (True, True, 2)
    step_of('ours', 'compiled')
    assert (asked['compile'], asked['cuda_graph']) == (True, False)
    step_of('ours', 'deployed')
    assert (asked['compile'], asked['cuda_graph']) == (False, False)


def test_a_graphed_row_has_no_peak_and_cudnn_chooses_throughout(monkeypatch, compiled, captured):
    chooses = []
    observe = run.observe
    monkeypatch.setattr(run, 'observe', lambda step: chooses.append(torch.backends.cudnn.benchmark) or observe(step))
    monkeypatch.setattr(run, 'require_forms', lambda *_: None)
    monkeypatch.setattr(forms, '_deployed', lambda variant, case, model, dtype: model)
    rows = measure(CASE, forms=['eager', 'graphed'], sides=['ours'], device=CPU, rounds=None)
    assert [(row.form, row.status, bool(row.peak_bytes)) for row in rows[:2]] == [
        ('eager', 'agrees', True),
        ('graphed', 'agrees', False),
    ]
    assert chooses == [True] * 3
    assert not torch.backends.cudnn.benchmark


def test_graphs_are_measured_on_cuda():
    with pytest.raises(ValueError, match='graphed is a CUDA graph, got the device cpu'):
        measure(CASE, forms=['graphed'], sides=['ours'], device=CPU)
