"""Forms that a CPU measures in minutes or not at all: the arguments that they pass to torch and `deploy`."""

from dataclasses import replace

import pytest
import torch
from variants import images

from timm_sk.bench import Case, Variant, forms, measure, runner
from timm_sk.bench.counterparts import build
from timm_sk.bench.forms import prepare
from timm_sk.bench.steps import Inference, Training
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
        output = forward(x)
        return Recording(input=x, output=output, replay=lambda: output.copy_(forward(x)), lock=torch.no_grad)

    monkeypatch.setattr('timm_sk.inference.cuda_graph.record', record)
    return found


def step_of(side, form, task='inference'):
    case = replace(CASE, task=task, arch='skresnet18' if side == 'timm' else CASE.arch)
    weights = build(side, case.arch).state_dict()
    return prepare(Variant(side, form), case, weights, [images(size=32)], torch.arange(2))


@pytest.mark.deep
def test_max_autotune(compiled):
    step = step_of('ours', 'max_autotune')
    assert compiled == [('StemPoolResNet', dict(mode='max-autotune-no-cudagraphs'))]
    assert type(step.module).__name__ == 'Deployed'
    assert torch.equal(step(), step.module(step.images[0]))
    compiled.clear()
    step_of('timm', 'max_autotune')
    step_of('ours', 'max_autotune', 'training')
    step_of('timm', 'compiled')
    assert [options for _, options in compiled] == [dict(mode='max-autotune-no-cudagraphs')] * 2 + [{}]


def test_timm_in_a_cuda_graph(compiled, captured):
    step = step_of('timm', 'compiled+graph')
    assert compiled == [('ResNet', {})]
    (x,) = captured
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, step.images[0])
    expected = step.module(step.images[0])
    x.zero_()
    assert torch.equal(step(), expected)


def test_arguments_of_deploy(monkeypatch):
    passed = {}
    monkeypatch.setattr(forms, 'deploy', lambda model, **settings: passed.update(settings) or model)
    for form, (compile, graph, settings) in {
        'compiled+graph': (True, True, {}),
        'compiled': (True, False, {}),
        'deployed': (False, False, {}),
        'folded': (False, False, dict(merge_groups=False, join_branches=False)),
        'folded_merged+graph': (False, True, dict(join_branches=False)),
        'folded_joined': (False, False, dict(merge_groups=False)),
        'inductor': (True, False, dict(join_branches=False)),
    }.items():
        passed.clear()
        step_of('ours', form)
        common = dict(input_size=(3, 32, 32), batch_size=2, dtype=torch.float32, channels_last=True)
        assert passed == dict(compile=compile, cuda_graph=graph, **common, **settings)


def test_inductor_runs_without_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr(forms, 'deploy', lambda model, **_: seen.append(kernels.IN_COMPILED_GRAPHS) or model)
    step = step_of('ours', 'inductor')
    step.module.register_forward_hook(lambda *_: seen.append(kernels.IN_COMPILED_GRAPHS))
    step()
    assert seen == [False, False]
    assert kernels.IN_COMPILED_GRAPHS


def test_graph_has_no_peak_and_cudnn_benchmark_is_on(monkeypatch, compiled, captured):
    enabled = []
    observe = Inference.observe

    def noting(step, first=None):
        enabled.append(torch.backends.cudnn.benchmark)
        return observe(step, first)

    monkeypatch.setattr(Inference, 'observe', noting)
    monkeypatch.setattr(runner, 'require_supported', lambda *_, **__: None)
    monkeypatch.setattr(forms, '_deployed', lambda variant, case, model: model)
    eager, graph = measure(CASE, forms=['eager', 'compiled+graph'], sides=['ours'], device=CPU, rounds=None)
    assert [(row.form, row.status, bool(row.peak_bytes)) for row in (eager[0], *graph)] == [
        ('eager', 'agrees', True),
        ('compiled+graph', 'agrees', False),
    ]
    assert enabled == [False, True, True]  # off for the reference
    assert not torch.backends.cudnn.benchmark


def test_other_forms_are_measured_after_a_failure(monkeypatch):
    prepared, timed = [], []
    prepare = runner.prepare

    def noting(variant, case, weights, images, labels):
        prepared.append((str(variant), case.dtype, len(images[0])))
        return prepare(variant, case, weights, images, labels)

    def interleave(steps, **_):
        timed.append([str(variant) for variant in steps])
        if len(timed) == 2:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.\nTried to allocate')
        return {variant: [1.0 + index] * 7 for index, variant in enumerate(steps)}, 1

    monkeypatch.setattr(runner, 'prepare', noting)
    monkeypatch.setattr(runner, 'interleave', interleave)
    logged = []
    case = replace(CASE, batch=12, dtype='bfloat16')
    names = ['eager', 'reparameterized', 'deployed']
    found = measure(case, forms=names, sides=['ours'], device=CPU, log=logged.append)
    assert [(row.form, row.median_ms) for row in next(found)] == [('eager', 1.0), ('eager', 2.0)]
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
    assert logged[-2:] == [
        'sknet_atto ours reparameterized inference fails: OutOfMemoryError: CUDA out of memory.',
        f'{case}: ours deployed',
    ]
    assert timed[1:] == [['ours eager', 'convolutions eager', f'ours {form}'] for form in names[1:]]


def test_every_row_fails_with_the_reference(monkeypatch):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(runner, 'fill', fail)
    found = measure(CASE, forms=['eager', 'deployed'], sides=['ours'], device=CPU)
    assert [[row.status for row in rows] for rows in found] == [['fails'], ['fails']]


def test_compiled_training_is_compared_on_the_whole_batch(compiled, monkeypatch):
    seen = []
    observe = Training.observe
    monkeypatch.setattr(Training, 'observe', lambda step, first=None: seen.append(first) or observe(step, first))
    case = replace(CASE, task='training', batch=12)
    list(measure(case, forms=['compiled'], sides=['ours'], device=CPU, rounds=None))
    assert [first for first in seen if first] == [8, 12]
