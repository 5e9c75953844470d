"""The attention weights of every unit, against the units' own selection."""

import pytest
import timm
import torch
from random_weights import fill_model
from variants import CIFAR, LSK, MOBILE, ONE_PER_BLOCK, SHUFFLE, filled, images, units_of

import timm_sk
from timm_sk import lucid
from timm_sk.attention import unit_name

# One net of each kind of unit.
NETS = [
    'sknet50_3path',
    'sknet50_holocron',
    'sknet50_syt2',
    'skresnet50_insight',
    CIFAR,
    SHUFFLE,
    MOBILE,
    *ONE_PER_BLOCK,
]


@pytest.mark.parametrize('name', NETS)
@torch.inference_mode()
def test_weights(name):
    model = filled(name)
    x = images(size=32)
    expected = model(x)
    units = timm_sk.attention_weights(model, x)
    modules = units_of(model)
    assert [unit.path for unit in units] == list(modules)
    assert len({unit.name for unit in units}) == len(units)
    for unit in units:
        module = modules[unit.path]
        branches = module.radix if isinstance(module, timm_sk.SplitAttention) else module.num_paths
        assert unit.weights.shape == (2, branches, module.out_channels)
        if branches > 1:
            torch.testing.assert_close(unit.weights.sum(1), torch.ones_like(unit.weights[:, 0]))
    seen = {}
    last = modules[units[-1].path]
    last.register_forward_hook(
        lambda unit, inputs, output: seen.update(branches=unit.split(inputs[0]), output=output.clone())
    )
    assert torch.equal(model(x), expected)
    selected = sum(b * w[..., None, None] for b, w in zip(seen['branches'], units[-1].weights.unbind(1), strict=True))
    torch.testing.assert_close(selected, seen['output'], rtol=1e-4, atol=1e-5 * float(selected.abs().max()))


@torch.inference_mode()
def test_maps_of_lsknet():
    model = filled(LSK)
    x = images()
    expected = model(x)
    units = timm_sk.attention_weights(model, x)
    assert [unit.name for unit in units] == ['LSK_1_1', 'LSK_2_1', 'LSK_2_2', 'LSK_3_1', 'LSK_4_1']
    assert [unit.weights.shape for unit in units] == [(2, 2, side, side) for side in (16, 8, 8, 4, 2)]
    assert {unit.kernel_extents for unit in units} == {(5, 23)}
    seen = {}
    module = model.get_submodule(units[1].path)
    module.register_forward_hook(lambda unit, inputs, output: seen.update(x=inputs[0], output=output))
    assert torch.equal(model(x), expected)
    small, large = module.split(seen['x'])
    first, second = units[1].weights.unbind(1)
    selected = module.conv(small * first[:, None] + large * second[:, None])
    torch.testing.assert_close(seen['x'] * selected, seen['output'])


@pytest.mark.deep
@pytest.mark.parametrize('name', ['sknet50_3path', 'resnest14d', LSK])
@torch.inference_mode()
def test_contributions(name):
    """The norms of the weighted outputs, against the outputs of the modules inside the last unit."""
    model = filled(name)
    x = images(size=32)
    expected = model(x)
    with timm_sk.record_attention(model, contributions=True) as units:
        assert torch.equal(model(x), expected)
    unit = units[-1]
    module = model.get_submodule(unit.path)
    if isinstance(module, timm_sk.SplitAttention):
        parts = [module.act0]
    else:
        parts = [*module.paths] if hasattr(module, 'paths') else [module.conv1, module.conv2]
    outputs = []
    for part in parts:
        part.register_forward_hook(lambda layer, inputs, output: outputs.append(output.clone()))
    model(x)
    branches = outputs[0].chunk(module.radix, dim=1) if len(parts) == 1 else outputs
    assert unit.contributions.shape == (2, len(branches), *branches[0].shape[2:])
    for m, branch in enumerate(branches):
        gate = unit.weights[:, m]
        weighted = branch * (gate[:, None] if gate.dim() == 3 else gate[:, :, None, None])
        torch.testing.assert_close(unit.contributions[:, m], weighted.square().sum(1).sqrt(), rtol=1e-4, atol=1e-5)
    assert float(unit.contributions.std()) > 0


def test_names():
    units = timm_sk.attention_weights(timm.create_model('sknet50').eval(), images(size=32))
    names = [unit.name for unit in units]
    assert names[:4] == ['SK_2_1', 'SK_2_2', 'SK_2_3', 'SK_3_1']
    assert names[-1] == 'SK_5_3'
    assert len(names) == 16
    assert timm_sk.attention_weights(filled('resnest14d'), images())[0].name == 'SA_2_1'
    assert unit_name('stage3.1.branch2.sk') == 'SK_3_2'
    assert unit_name('stage3.0.branch1.sk') == 'SK_3_1_shortcut'
    assert unit_name('blocks.1.0.conv_dw') == 'SK_2_1'
    assert unit_name('encoder.unit') == 'encoder.unit'


def test_record_attention():
    model = fill_model(timm.create_model('sknet_atto')).train()
    with timm_sk.record_attention(model) as units:
        loss = model(images(size=32)).sum()
        model(images(size=32))
    loss.backward()
    assert len(units) == 8
    assert model.training
    assert model.layer1[0].conv2.attn.fc_select.weight.grad.abs().max() > 0
    assert not any(module._forward_hooks for module in model.modules())
    model(images(size=32))
    assert len(units) == 8


def test_training_mode_and_statistics_stay():
    model = fill_model(timm.create_model('sknet_atto')).train()
    model.bn1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (first, *_) = timm_sk.attention_weights(model, images(1, size=32))
    assert first.weights.shape[0] == 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training
    assert model.layer1[0].conv2.attn.bn.training
    assert not model.bn1.training


@pytest.mark.parametrize('make', [lucid.sk_resnet_18, lucid.resnest_14])
def test_batch_of_one_of_lucids_nets_in_train_mode(make):
    model = make(3, channels=[16] * 4).train()
    with timm_sk.record_attention(model) as units:
        model(images(1))
    assert {unit.weights.shape[:2] for unit in units} == {(1, 2)}


def test_model_without_attention():
    for model in (timm.create_model('resnet18'), timm.create_model('sknet26', sk_kwargs=dict(attention=False))):
        with pytest.raises(ValueError, match='has no unit that selects'):
            timm_sk.attention_weights(model, images())
