"""Deployed models compute what the models compute, leave them alone, and refuse what they cannot deploy."""

import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from filling import fill_model
from torch import Tensor, nn
from variants import filled, images, shallow

import timm_sk
from timm_sk.inference import autotune, timing, tune_groups
from timm_sk.layers.folded_conv import FoldedConv
from timm_sk.layers.merged_groups import MergedConv
from timm_sk.pretrained import store_root

DOCUMENT = Path(__file__).parents[2] / 'docs' / 'speed.md'
EXAMPLES = re.findall(r'^```python\n(.*?)^```', DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
SMALL = dict(input_size=(3, 32, 32), batch_size=2)
NETS = ['sknet_atto', 'sk_resnext_50_32x4d', 'resnest50d_4s2x40d', 'sk_mobilenetv2_100']


def deploy(model: nn.Module, **kwargs: object) -> nn.Module:
    return timm_sk.deploy(model, **{**SMALL, 'compile': False, 'merge_groups': False, **kwargs})


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize('name', NETS)
def test_outputs_are_the_models_for_any_shape(name):
    model = filled(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    deployed = deploy(model)
    for x in (images(size=32), images(5, size=32), images(1, size=64), images()[..., :40]):
        assert distance(deployed(x), model(x).detach()) <= 2e-5
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d) and name != 'sk_resnext_50_32x4d']
    assert all(convolution.packed is not None for convolution in convolutions(deployed))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(isinstance(module, FoldedConv) for module in model.modules())


def convolutions(model: nn.Module) -> list[FoldedConv]:
    return [module for module in model.modules() if isinstance(module, FoldedConv)]


def test_light_nets_are_folded_whole():
    for name in ('sk_mobilenetv2_100', 'sk_shufflenetv2_x0_5'):
        norms = [m for m in deploy(filled(name)).modules() if isinstance(m, nn.BatchNorm2d)]
        assert not norms
    model = filled('sk_shufflenetv2_x0_5').double()
    x = images(size=32, dtype=torch.float64)
    assert distance(deploy(model)(x), model(x).detach()) <= 1e-11


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d'])
def test_merged_groups_change_nothing_but_the_computation(name):
    model = filled(name).double()
    x, deployed = images(size=32, dtype=torch.float64), deploy(model)
    keys = {key: tensor.clone() for key, tensor in deployed.state_dict().items()}
    merged = [convolution for convolution in convolutions(deployed) if convolution.groups > 1]
    assert merged
    for convolution in merged:
        convolution.merge(convolution.groups // 2)
        assert convolution.wide.shape[1] == 2 * convolution.weight.shape[1]
    assert distance(deployed(x), model(x).detach()) <= 1e-12
    assert deployed.state_dict().keys() == keys.keys()
    assert all(torch.equal(tensor, keys[key]) for key, tensor in deployed.state_dict().items())
    assert distance(copy.deepcopy(deployed)(x), model(x).detach()) <= 1e-12


@pytest.mark.deep
def test_choices_are_measured_once_and_a_damaged_file_is_measured_anew():
    model = filled('sknet_atto')
    path = store_root() / tune_groups.FILE_NAME
    deploy(model, merge_groups=True, remember=False)
    assert not path.exists()
    deploy(model, merge_groups=True)
    found = json.loads(path.read_text())
    assert len(found) == 10  # two branches in five units
    assert all('torch 2' in key and 'groups 8' in key for key in found)
    path.write_text(json.dumps(dict.fromkeys(found, 2)))  # what another machine might have found
    x, merged = images(size=32), deploy(model, merge_groups=True)
    assert [convolution.wide_groups for convolution in convolutions(merged) if convolution.groups > 1] == [2] * 10
    assert distance(merged(x), model(x).detach()) <= 1e-5
    assert all(convolution.wide is None for convolution in convolutions(deploy(model, merge_groups=False)))
    for damaged in (
        '{"half',
        '[1, 2]',
        json.dumps(dict.fromkeys(found, 3)),
        json.dumps(dict.fromkeys(found, 'two')),
    ):
        path.write_text(damaged)
        deploy(model, merge_groups=True)
        assert set(json.loads(path.read_text()).values()) <= {1, 2, 4, 8}
    assert not list(Path(path.parent).glob('*.json.*'))


@pytest.mark.deep
def test_a_store_that_cannot_be_written_does_not_matter(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / 'file' / 'store'))
    model = filled('sknet_atto')
    assert distance(deploy(model, merge_groups=True)(images(size=32)), model(images(size=32)).detach()) <= 1e-5


def test_the_fastest_number_of_groups_must_win_by_a_margin():
    assert tune_groups.choose({32: [2.0, 2.1, 9.0], 4: [1.0, 1.1, 1.0], 8: [1.2, 0.1, 1.2]}, 32) == 4
    assert tune_groups.choose({32: [1.0, 1.0, 1.0], 4: [0.96, 0.96, 0.96]}, 32) == 32
    assert tune_groups.choose({32: [1.0, 1.0, 1.0], 4: [0.96, 0.96, 0.96]}, 32, margin=0.03) == 4
    assert tune_groups.choose({32: [1.0], 4: [2.0]}, 32) == 32


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test lets them."""
    now = [0.0]
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    return now


def test_runs_are_measured_in_turns(clock):
    order = []

    def run(number: int, seconds: float) -> None:
        order.append(number)
        clock[0] += seconds

    times = autotune.measure({8: lambda: run(8, 0.3), 2: lambda: run(2, 0.1)}, torch.device('cpu'))
    assert times == {8: pytest.approx([300] * 7), 2: pytest.approx([100] * 7)}
    assert order == [8, 2] * 9  # two rounds of warm-up


def test_replays_of_a_graph_are_measured_and_not_launches(clock):
    """A launch takes 30 us of the host, the kernels of one way 9 us and those of the other 2 us."""
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
    times = autotune.measure(runs, torch.device('cpu'), capture=capture)
    assert recording == [[8] * 20, [2] * 20]
    assert times == {8: pytest.approx([9e-3] * 7), 2: pytest.approx([2e-3] * 7)}
    assert autotune.choose(times, 8) == 2
    assert autotune.choose(autotune.measure(runs, torch.device('cpu')), 8) == 8


def test_compiled():
    model = filled('sknet_atto')
    deployed = deploy(model, compile=True)
    expected = model(images(size=32)).detach()
    found = deployed(images(size=32).requires_grad_())
    assert distance(found, expected) <= 1e-5
    assert not found.requires_grad
    with torch.inference_mode():
        assert distance(deployed(images(size=32)), expected) <= 1e-5
    assert distance(deployed(images(3, size=64)), model(images(3, size=64)).detach()) <= 1e-5
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert distance(twin(images(size=32)), expected) <= 1e-5


def test_what_users_ask_of_a_model_is_there():
    model = filled('sknet_atto', num_classes=7)
    deployed = deploy(model, dtype=torch.bfloat16)
    x = images(size=32)
    assert deployed(x).dtype == deployed.dtype == torch.bfloat16
    assert distance(deployed(x), model(x).detach()) <= 0.05
    assert (deployed.num_classes, deployed.pretrained_cfg) == (7, model.pretrained_cfg)
    assert distance(deployed.forward_head(deployed.forward_features(x)), deployed(x)) <= 0.02
    assert deployed.eval() is deployed
    assert {unit.path for unit in timm_sk.attention_weights(deployed.model, x.bfloat16())} == {
        unit.path for unit in timm_sk.attention_weights(model, x)
    }
    assert timm_sk.deploy(model, compile=False, merge_groups=False).input_shape == [1, 3, 32, 32]
    grey = deploy(filled('sknet_atto', in_chans=1), input_size=None)
    assert grey.input_shape == [2, 1, 32, 32]


@pytest.mark.parametrize('name', ['sknet_atto', 'resnest50d_4s2x40d', 'sk_shufflenetv2_x0_5'])
@pytest.mark.parametrize('channels_last', [True, False])
def test_features(name, channels_last):
    model = fill_model(shallow(name, features_only=True)).eval()
    deployed = deploy(model, channels_last=channels_last)
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
    x = images(size=32)
    exact = copy.deepcopy(model).double()(x.double())
    for found, expected, wanted in zip(deployed(x), model(x), exact, strict=True):
        own = distance(expected.detach(), wanted.detach())  # ShuffleNet with random norms is ill-conditioned
        assert distance(found, expected.detach()) <= max(2e-5, 3 * own)
    assert deployed.feature_info.channels() == model.feature_info.channels()


def test_any_module_in_eval_mode_can_be_deployed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    assert distance(deploy(model)(images(size=32)), model(images(size=32)).detach()) <= 1e-5


def on_meta() -> nn.Module:
    return shallow('sknet_atto', device='meta').eval()


def on_two_devices() -> nn.Module:
    model = filled('sknet_atto')
    model.fc.to('meta')
    return model


@pytest.mark.parametrize(
    ('make', 'kwargs', 'message'),
    [
        (lambda: 'sknet_atto', {}, 'takes a torch.nn.Module, got str'),
        (lambda: filled('sknet_atto').train(), {}, 'in eval mode, got train mode in "the model"'),
        (lambda: partly_training(), {}, 'in eval mode, got train mode in "layer1"'),
        (on_meta, {}, 'one of cpu, cuda, mps, xpu, got meta'),
        (on_two_devices, {}, 'on one device, got cpu, meta'),
        (lambda: filled('sknet_atto'), dict(dtype=torch.int8), 'must be one of float32, .* got torch.int8'),
        (lambda: filled('sknet_atto'), dict(dtype='float16'), 'must be one of float32, .* got float16'),
        (lambda: filled('sknet_atto'), dict(input_size=224), 'channels, height and width, got 224'),
        (lambda: filled('sknet_atto'), dict(input_size=(3, 0, 32)), 'at least 1, got 0'),
        (lambda: filled('sknet_atto'), dict(input_size=(4, 32, 32)), r'does not take pictures of \[4, 32, 32\]'),
        (lambda: filled('sknet_atto'), dict(batch_size=0), 'batch_size must be .* at least 1, got 0'),
        (lambda: nn.Conv2d(3, 4, 3).eval(), dict(input_size=None), 'has no pretrained_cfg .* pass input_size'),
        (lambda: deploy(filled('sknet_atto')), {}, 'as it was trained, got a Deployed'),
        (lambda: torch.compile(filled('sknet_atto')), {}, 'as it was trained, got a OptimizedModule'),
    ],
)
def test_refuses(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        deploy(make(), **kwargs)


def partly_training() -> nn.Module:
    model = filled('sknet_atto')
    model.layer1.train()
    return model


def test_a_deployed_model_stays_what_it_is():
    deployed = deploy(filled('sknet_atto'))
    with pytest.raises(ValueError, match='only infers, got train mode'):
        deployed.train()
    with pytest.raises(ValueError, match='takes no other weights: load them into the model'):
        deployed.load_state_dict(deployed.state_dict())
    with pytest.raises(ValueError, match=r'stays on its device and in torch.float32'):
        deployed.half()
    assert timm.create_model('sknet_atto').training


@pytest.mark.deep
@pytest.mark.parametrize('example', EXAMPLES[:2])
def test_examples_of_the_document(example):
    before: dict[str, nn.Module] = {}
    exec(example, before)
    fast, x = before.get('deployed') or before['folded'], images(8, size=32)
    assert distance(fast(x).detach(), before['model'](x).detach()) <= 1e-5
    assert not torch.equal(fast(x), before['model'](x))


@pytest.mark.deep
def test_every_model_of_a_class_is_compiled(monkeypatch):
    compiling, graphs = torch.compile, []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, 'compile', lambda forward, **_: compiling(forward, dynamic=False, backend=backend))
    with torch._dynamo.config.patch(cache_size_limit=2):
        for channels in (1, 2, 3, 4):
            model = filled('sknet_atto', in_chans=channels)
            deployed = deploy(model, input_size=(channels, 32, 32), compile=True)
            x = images(channels=channels, size=32)
            assert distance(deployed(x), model(x).detach()) <= 1e-5
    assert len(graphs) == 4


def test_it_stays_where_it_is_and_out_of_autocast():
    model = filled('sknet_atto')
    deployed = deploy(model)
    assert deployed.to('cpu') is deployed.to(torch.float32) is deployed
    for elsewhere in ('meta', torch.float64):
        with pytest.raises(ValueError, match=r'stays on its device and in torch\.float32'):
            deployed.to(elsewhere)
    with torch.autocast('cpu', torch.bfloat16):
        found = deployed(images(size=32))
    assert found.dtype is torch.float32
    assert distance(found, model(images(size=32)).detach()) <= 1e-5


@pytest.mark.deep
def test_example_of_training():
    before: dict[str, nn.Module] = {}
    exec(EXAMPLES[2], before)
    groups = {name: m.wide_groups for name, m in before['model'].named_modules() if isinstance(m, MergedConv)}
    assert groups == before['merged']


def test_the_document_has_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.deep
@torch.no_grad()
def test_deployed_model_is_one_graph_to_dynamo():
    deployed = timm_sk.deploy(filled('sknet_atto'), input_size=(3, 32, 32), compile=False, merge_groups=False)
    x = images(1, size=32)
    expected = deployed(x)
    exported = torch.export.export(deployed, (x,), strict=True).module()
    compiled = torch.compile(deployed, backend='eager', fullgraph=True)
    for run in (exported, compiled):
        torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
