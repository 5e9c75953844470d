"""Deployed models: same outputs, source model unchanged, invalid arguments."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from random_weights import fill_model
from torch import Tensor, nn
from variants import distance, filled, images, shallow

import timm_sk
from timm_sk.layers.folded_conv import FoldedConv

SMALL = dict(input_size=(3, 32, 32), batch_size=2)
NETS = ['sknet_atto', 'sk_resnext_50_32x4d', 'resnest50d_4s2x40d', 'sk_mobilenetv2_100']


def deploy(model: nn.Module, **kwargs: object) -> nn.Module:
    return timm_sk.deploy(model, **{**SMALL, 'compile': False, 'merge_groups': False, **kwargs})


@pytest.mark.parametrize('name', NETS)
def test_outputs_equal_the_models(name):
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
    for copied in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert distance(copied(images(size=32)), expected) <= 1e-5


def test_methods_and_attributes():
    model = filled('sknet_atto', num_classes=7)
    deployed = deploy(model, dtype=torch.bfloat16)
    x = images(size=32)
    assert deployed(x).dtype == deployed.dtype == torch.bfloat16
    assert distance(deployed(x), model(x).detach()) <= 0.05
    assert (deployed.num_classes, deployed.pretrained_cfg) == (7, model.pretrained_cfg)
    assert distance(deployed.forward_head(deployed.forward_features(x)), deployed(x)) <= 0.02
    assert deployed.eval() is deployed
    found, expected = ([unit.name for unit in timm_sk.attention_weights(net, x)] for net in (deployed, model))
    assert found == expected
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


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = filled('sknet_atto')
    change(model)
    return model


@pytest.mark.parametrize(
    ('make', 'kwargs', 'message'),
    [
        (lambda: 'sknet_atto', {}, 'Expected a torch.nn.Module, got str'),
        (lambda: changed(lambda model: model.train()), {}, 'got train mode in "the model"'),
        (lambda: changed(lambda model: model.layer1.train()), {}, 'got train mode in "layer1"'),
        (lambda: shallow('sknet_atto', device='meta').eval(), {}, 'on cpu, cuda, mps, xpu, got meta'),
        (lambda: changed(lambda model: model.fc.to('meta')), {}, 'on one device, got cpu, meta'),
        (lambda: filled('sknet_atto'), dict(dtype=torch.int8), 'must be one of float32, .* got torch.int8'),
        (lambda: filled('sknet_atto'), dict(dtype='float16'), 'must be one of float32, .* got float16'),
        (lambda: filled('sknet_atto'), dict(input_size=224), 'channels, height and width, got 224'),
        (lambda: filled('sknet_atto'), dict(input_size=(3, 0, 32)), 'at least 1, got 0'),
        (lambda: filled('sknet_atto'), dict(input_size=(4, 32, 32)), r'does not take images of \[4, 32, 32\]'),
        (lambda: filled('sknet_atto'), dict(cuda_graph=True), 'CUDA graphs need .* on cpu: pass cuda_graph=False'),
        (lambda: filled('sknet_atto'), dict(batch_size=0), 'batch_size must be .* at least 1, got 0'),
        (lambda: nn.Conv2d(3, 4, 3).eval(), dict(input_size=None), 'has no pretrained_cfg .* pass input_size'),
        (lambda: deploy(filled('sknet_atto')), {}, 'Cannot deploy a Deployed'),
        (lambda: torch.compile(filled('sknet_atto')), {}, 'Cannot deploy a OptimizedModule'),
    ],
)
def test_invalid_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        deploy(make(), **kwargs)


def test_deployed_model_cannot_be_changed():
    model = filled('sknet_atto')
    deployed = deploy(model)
    changes = [deployed.train, deployed.half, partial(deployed.to, 'meta'), partial(deployed.to, torch.float64)]
    changes.append(partial(deployed.load_state_dict, deployed.state_dict()))
    assert deployed.to('cpu') is deployed.to(torch.float32) is deployed.cpu() is deployed.float() is deployed
    for change in changes:
        with pytest.raises(ValueError, match=r'stays in eval mode, on its device and in torch\.float32, with its weig'):
            change()
    with torch.autocast('cpu', torch.bfloat16):
        found = deployed(images(size=32))
    assert found.dtype is torch.float32
    assert distance(found, model(images(size=32)).detach()) <= 1e-5


@pytest.mark.deep
def test_compile_many_models_of_one_class(monkeypatch):
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


@pytest.mark.deep
@torch.no_grad()
def test_deployed_model_is_one_dynamo_graph():
    deployed = timm_sk.deploy(filled('sknet_atto'), input_size=(3, 32, 32), compile=False, merge_groups=False)
    x = images(1, size=32)
    expected = deployed(x)
    exported = torch.export.export(deployed, (x,), strict=True).module()
    compiled = torch.compile(deployed, backend='eager', fullgraph=True)
    for run in (exported, compiled):
        torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
