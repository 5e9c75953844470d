"""The forms that a CPU does not measure, or only in minutes: what they ask of torch and of `deploy`."""

from dataclasses import replace

import pytest
import torch
from variants import images

import timm_sk
from timm_sk.bench import Case, Variant, forms, measure, runner
from timm_sk.bench.counterparts import build
from timm_sk.bench.forms import prepare
from timm_sk.inference.cuda_graph import Recording
from timm_sk.ops import kernels

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

    monkeypatch.setattr('timm_sk.inference.cuda_graph.record', record)
    return found


def step_of(side, form, task='inference'):
    case = replace(CASE, task=task)
    return prepare(Variant(side, form), case, build('ours', 'sknet_atto').eval(), [images(size=32)], torch.arange(2))


@pytest.mark.deep
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
    step = step_of('timm', 'compiled+graph')
    assert compiled == [('StemPoolResNet', {})]
    (x,) = captured
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, step.pictures[0])
    expected = step.module(step.pictures[0])
    x.zero_()
    assert torch.equal(step(), expected)


def test_what_the_forms_ask_of_deploy(monkeypatch):
    asked = {}
    monkeypatch.setattr(timm_sk, 'deploy', lambda model, **settings: asked.update(settings) or model)
    for form, (compile, graph, settings) in {
        'compiled+graph': (True, True, {}),
        'compiled': (True, False, {}),
        'deployed': (False, False, {}),
        'folded': (False, False, dict(merge_groups=False, join_branches=False)),
        'folded_merged+graph': (False, True, dict(join_branches=False)),
        'folded_joined': (False, False, dict(merge_groups=False)),
        'inductor': (True, False, dict(join_branches=False)),
    }.items():
        asked.clear()
        step_of('ours', form)
        common = dict(input_size=(3, 32, 32), batch_size=2, dtype=torch.float32, channels_last=True)
        assert asked == dict(compile=compile, cuda_graph=graph, **common, **settings)


def test_inductor_runs_without_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr(timm_sk, 'deploy', lambda model, **_: seen.append(kernels.IN_COMPILED_GRAPHS) or model)
    step = step_of('ours', 'inductor')
    step.module.register_forward_hook(lambda *_: seen.append(kernels.IN_COMPILED_GRAPHS))
    step()
    assert seen == [False, False]
    assert kernels.IN_COMPILED_GRAPHS


def test_a_graphed_row_has_no_peak_and_cudnn_chooses(monkeypatch, compiled, captured):
    chooses = []
    observe = runner.observe

    def noting(step, first=None):
        chooses.append(torch.backends.cudnn.benchmark)
        return observe(step, first)

    monkeypatch.setattr(runner, 'observe', noting)
    monkeypatch.setattr(runner, 'require_forms', lambda *_: None)
    monkeypatch.setattr(forms, '_deployed', lambda variant, case, model, dtype: model)
    eager, graph = measure(CASE, forms=['eager', 'compiled+graph'], sides=['ours'], device=CPU, rounds=None)
    assert [(row.form, row.status, bool(row.peak_bytes)) for row in (eager[0], *graph)] == [
        ('eager', 'agrees', True),
        ('compiled+graph', 'agrees', False),
    ]
    assert chooses == [False, True, True]  # not for the reference
    assert not torch.backends.cudnn.benchmark


def test_what_is_known_is_told_and_a_failure_stops_nothing_else(monkeypatch):
    prepared, timed = [], []
    prepare = runner.prepare

    def noting(variant, case, model, images, labels):
        prepared.append((str(variant), case.dtype, len(images[0])))
        return prepare(variant, case, model, images, labels)

    def interleave(steps, **_):
        timed.append([str(variant) for variant in steps])
        if len(timed) == 2:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.\nTried to allocate')
        return {variant: [1.0 + index] * 7 for index, variant in enumerate(steps)}, 1

    monkeypatch.setattr(runner, 'prepare', noting)
    monkeypatch.setattr(runner, 'interleave', interleave)
    said = []
    case = replace(CASE, batch=12, dtype='bfloat16')
    forms = ['eager', 'reparameterized', 'deployed']
    found = measure(case, forms=forms, sides=['ours'], device=CPU, say=said.append)
    assert [(row.form, row.median_ms) for row in next(found)] == [('eager', 1.0), ('convolutions', 2.0)]
    assert prepared == [
        ('ours eager', 'float32', 8),  # the reference
        ('ours eager', 'bfloat16', 8),
        ('ours eager', 'bfloat16', 12),
        ('ours eager', 'float32', 8),
    ]
    assert [[(row.form, row.status, row.median_ms) for row in rows] for rows in found] == [
        [('reparameterized', 'fails', None)],
        [('deployed', 'agrees', 3.0)],
    ]
    assert said[-2:] == [
        'sknet_atto ours reparameterized inference fails: OutOfMemoryError: CUDA out of memory.',
        f'{case}: ours deployed',
    ]
    assert timed[1:] == [['ours eager', 'floor convolutions', f'ours {form}'] for form in forms[1:]]


def test_without_memory_for_the_reference_every_row_fails(monkeypatch):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(runner, '_inputs', fail)
    found = measure(CASE, forms=['eager', 'deployed'], sides=['ours'], device=CPU)
    assert [[row.status for row in rows] for rows in found] == [['fails'], ['fails']]


def test_what_trains_compiled_is_compared_on_its_whole_batch(compiled, monkeypatch):
    seen = []
    observe = runner.observe
    monkeypatch.setattr(runner, 'observe', lambda step, first=None: seen.append(first) or observe(step, first))
    case = replace(CASE, task='training', batch=12)
    list(measure(case, forms=['compiled'], sides=['ours'], device=CPU, rounds=None))
    assert [first for first in seen if first] == [8, 12]


def test_graphs_are_measured_on_cuda():
    with pytest.raises(ValueError, match='CUDA graphs need a CUDA GPU, got eager\\+graph on cpu'):
        measure(CASE, forms=['eager+graph'], sides=['ours'], device=CPU)
