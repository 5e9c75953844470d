"""Units rewritten for inference engines: same outputs as the model."""

import pytest
import timm
import torch
from random_weights import fill_model
from timm_pair import NETS, SMALL, images, pair

from timm_sk.inference.graph_form import graph_form

OTHERS = {
    'resnest50d_4s2x40d': SMALL | dict(channels=(32, 32, 32, 32), base_width=64, stem_width=8),  # radix 4
    'resnest50d_1s4x24d': SMALL | dict(channels=(32, 32, 32, 32), base_width=64, stem_width=8),  # radix 1: a sigmoid
    'sknet50_3path': SMALL | dict(channels=(32, 32, 32, 32)),  # three branches
    'sk_shufflenetv2_x0_5': {},
}


@pytest.mark.parametrize('name', [*NETS, *OTHERS])
@torch.no_grad()
def test_outputs_of_the_graph_form(name):
    ours = pair(name)[0] if name in NETS else fill_model(timm.create_model(name, **OTHERS[name])).double().eval()
    x = images()
    expected, graph = ours(x), graph_form(ours)
    found = graph(x.float())
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert torch.equal(ours(x), expected)  # the model itself is not changed


def test_graph_form_folds_softmax_into_the_last_layer():
    graph = graph_form(pair('skresnext50_32x4d')[0])
    units = [module for module in graph.modules() if type(module).__name__ == '_InterpolatedSelectiveKernel']
    assert len(units) == 4
    assert all(unit.difference.out_channels == unit.unit.out_channels for unit in units)


@pytest.mark.parametrize('part', ['', '.attn', '.attn.fc_select'])
def test_hooks_keep_a_unit_as_it_is(part):
    ours, _ = pair('skresnext50_32x4d')
    seen = []
    ours.get_submodule(f'layer1.0.conv2{part}').register_forward_hook(lambda *_: seen.append(1))
    graph_form(ours)(images().float())
    assert seen == [1]


@torch.no_grad()
def test_replaced_layers_keep_a_unit_as_it_is():
    units = {'skresnext50_32x4d': ('layer1.0.conv2.attn', 'fc_select'), 'resnest14d': ('layer1.0.conv2', 'fc2')}
    for name, (unit, layer) in units.items():
        ours, _ = pair(name)
        replaced = ours.get_submodule(unit)
        setattr(replaced, layer, torch.nn.Sequential(getattr(replaced, layer)).eval())
        assert (graph_form(ours)(images().float()) - ours(images())).abs().max() <= 2e-5 * ours(images()).abs().max()
