"""Folded models: outputs, gradients, state dicts and features equal those of the unfolded ones."""

import pytest
import timm
import timm.layers
import timm.models
import timm.utils
import torch
import torch.fx
from random_weights import fill_model
from tiers import deep_except
from timm_pair import run_step
from torch import Tensor, nn
from variants import KINDS, LUCID_NAMES, ONE_PER_BLOCK, distance, filled, images

import timm_sk
from timm_sk import lucid
from timm_sk.errors import MismatchedCheckpointError
from timm_sk.layers.folded_conv import FoldedConv
from timm_sk.models.residual_block import FoldedBlock

LIGHT = ['sk_shufflenetv2_x0_5', 'sk_mobilenetv2_100', 'sknet29_16x32d']
BRIEFLY = ['sknet_atto', 'resnest50d_4s2x40d']  # in the default tier
WIDE = [name for name in KINDS if name != 'sknet_atto']
folded = timm.utils.reparameterize_model


def small(name: str, **kwargs: object) -> nn.Module:
    """Our shallow model with random weights and few channels."""
    few: dict[str, object] = dict(channels=(32, 32, 64, 64)) if name in WIDE else {}
    few = dict(layers=[1, 1, 1]) if name == 'sknet29_16x32d' else few
    return filled(name, **{**few, **kwargs})


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize('name', deep_except(ONE_PER_BLOCK + LIGHT, KINDS + LIGHT))
@torch.inference_mode()
def test_outputs(name):
    model = small(name)
    x, x64 = images(size=32), images(size=32, dtype=torch.float64)
    found, folded_model = model(x), folded(model)
    found_folded, exact = folded_model(x), model.double()
    expected = exact(x64)
    own = distance(found, expected)  # ShuffleNet with random norms is ill-conditioned: 5e-5 by itself
    assert distance(found_folded, expected) <= max(1e-5, 3 * own)
    folded(exact, inplace=True)
    assert distance(exact(x64), expected) <= max(1e-12, 1e-8 * own)
    outside = ('conv1.', 'conv5.', 'blocks.', 'conv_')  # of timm's and torchvision's trunks
    left = [key for key in norms(exact) if not key.startswith(outside) and not key.startswith('bn')]
    assert bool(left) == (name in LUCID_NAMES)  # the norm after their unit, which follows no single convolution
    assert all(key.endswith('.bn2') for key in left)


@pytest.mark.parametrize('name', deep_except(BRIEFLY, ONE_PER_BLOCK))
@torch.inference_mode()
def test_bfloat16(name):
    expected = small(name).double()(images(size=32, dtype=torch.float64))
    model = small(name).bfloat16()
    x = images(size=32, dtype=torch.bfloat16)
    folded_model = folded(model)
    assert {parameter.dtype for parameter in folded_model.parameters()} == {torch.bfloat16}
    assert distance(folded_model(x), expected) <= 2 * distance(model(x), expected)
    assert distance(folded(small(name)).bfloat16()(x), expected) <= 2 * distance(model(x), expected)


@pytest.mark.parametrize('name', deep_except(BRIEFLY, ONE_PER_BLOCK))
def test_gradients(name):
    x = images(size=32, dtype=torch.float64)
    model = small(name).double()
    found, expected = (run_step(net, x)['grad of x'] for net in (folded(model), model))
    assert distance(found, expected) <= 1e-11


@pytest.mark.deep
@pytest.mark.parametrize('name', ['sk_resnet_18', 'resnest50d_1s4x24d'])
@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
def test_traced_and_compiled(name):
    model, x = folded(small(name)), images(size=32)
    with torch.no_grad():
        expected = model(x)
        graph = torch.fx.symbolic_trace(model)
        called = [node.target.__name__ for node in graph.graph.nodes if node.op == 'call_function']
        assert called.count('convolve') == sum(isinstance(module, FoldedConv) for module in model.modules())
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        for run in (torch.jit.trace(model, x), graph, compiled):
            assert distance(run(x), expected) <= 1e-5


@pytest.mark.parametrize('name', [*ONE_PER_BLOCK, *LIGHT[:2]])
@torch.inference_mode()
def test_state_dict_memory_format_and_attention(name):
    model = folded(small(name))
    expected = model(images(size=32))
    other = folded(fill_model(small(name), seed=1))
    assert distance(other(images(size=32)), expected) > 1e-3
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images(size=32)), expected)
    exact, x = small(name).double(), images(size=32).double()  # float32 differs by up to 2e-5 in ShuffleNetV2
    found, attention = (timm_sk.attention_weights(net, x) for net in (folded(exact), exact))
    described = [[(unit.name, unit.path, unit.kernel_extents) for unit in units] for units in (found, attention)]
    assert described[0] == described[1]
    assert all(distance(a.weights, b.weights) <= 1e-12 for a, b in zip(found, attention, strict=True))
    features = model.to(memory_format=torch.channels_last).forward_features(images(size=32))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert distance(model.forward_head(features), expected) <= 1e-5


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('name', ['sknet_atto', 'sk_resnet_18', 'resnest50d_1s4x24d', 'sk_shufflenetv2_x0_5'])
def test_unfolded_weights(name, strict):
    model = folded(small(name))
    with pytest.raises(MismatchedCheckpointError, match='into the unfolded model, then fold'):
        model.load_state_dict(small(name).state_dict(), strict=strict)
    head = {key: value for key, value in model.state_dict().items() if key.startswith('fc.')}
    assert not model.load_state_dict(head, strict=False).unexpected_keys


@pytest.mark.parametrize('name', ['sknet_atto', 'sk_resnet_18', 'resnest50d_1s4x24d', 'sk_shufflenetv2_x0_5'])
def test_train_mode(name):
    model = small(name).train()
    before = repr(model)
    with pytest.raises(ValueError, match=r'in eval mode only, got a \w+ in train mode: load'):
        folded(model, inplace=True)
    assert repr(model) == before


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(act_layer='silu'),
        dict(act_layer='relu6'),
        dict(norm_layer='groupnorm1'),
        dict(norm_layer=timm.layers.BatchNormAct2d),
        dict(drop_path_rate=0.3, drop_block_rate=0.1),
        dict(block_args=dict(attn_layer='se')),
        dict(output_stride=8),
    ],
    ids=str,
)
@pytest.mark.parametrize('name', deep_except(BRIEFLY[:1], ['sknet_atto', 'sk_resnet_18', 'resnest50d_4s2x40d']))
@torch.inference_mode()
def test_other_layers(name, kwargs):
    model = small(name, **kwargs)
    folded_model = folded(model)
    assert distance(folded_model(images(size=32)), model(images(size=32))) <= 1e-5
    in_one_pass = 'block_args' not in kwargs and 'norm_layer' not in kwargs
    assert any(isinstance(module, FoldedBlock) for module in folded_model.modules()) == in_one_pass


@torch.inference_mode()
def test_anti_aliasing_and_other_norms():
    blurred = small('skresnet18', aa_layer=timm.layers.BlurPool2d)
    assert distance(folded(blurred)(images(size=32)), blurred(images(size=32))) <= 1e-5
    expected = small('sknet_atto')(images(size=32))
    for convert in (timm.layers.freeze_batch_norm_2d, timm.layers.convert_sync_batchnorm):
        folded_model = folded(convert(small('sknet_atto')).eval())
        kept = [module for module in folded_model.modules() if 'BatchNorm' in type(module).__name__]
        assert len(kept) == 3  # of the stem
        assert distance(folded_model(images(size=32)), expected) <= 1e-5


@torch.inference_mode()
def test_lucids_resnest():
    model = lucid.resnest_14(10, channels=[16] * 4).eval()
    x = images(1, size=32)
    assert distance(folded(model)(x), model(x)) <= 1e-5


@torch.inference_mode()
def test_inputs_and_features_are_not_overwritten():
    model = folded(small('skresnet18'))
    levels = model.forward_intermediates(images(size=32), intermediates_only=True)
    expected = [level.clone() for level in levels]
    x = levels[2].clone()
    model.layer2[1](x)  # adds x itself
    assert torch.equal(x, expected[2])
    backbone = folded(small('skresnet18', features_only=True))
    assert all(distance(a, b) <= 1e-6 for a, b in zip(backbone(images(size=32)), expected, strict=True))


def share_a_block(model: nn.Module) -> None:
    model.layer1[2] = model.layer1[1]


def share_a_convolution(model: nn.Module) -> None:
    model.layer1[1].conv2 = model.layer1[0].conv2


def tile_seamlessly(model: nn.Module) -> None:
    """As generators of textures do."""
    conv = model.layer1[0].conv2.conv

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode='circular'), weight, bias)

    conv._conv_forward = convolve


def replace_the_residual(model: nn.Module) -> None:
    block = model.layer1[0]
    block.residual = lambda x: 3 * type(block).residual(block, x)


def use_an_activation_twice(model: nn.Module) -> None:
    act = nn.ReLU()
    model.conv1 = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), act, nn.Conv2d(64, 64, 3, 1, 1), act).eval()


CHANGES = [share_a_block, share_a_convolution, tile_seamlessly, replace_the_residual, use_an_activation_twice]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('form', [folded, lambda model: timm_sk.deploy(model, input_size=(3, 32, 32), compile=False)])
@pytest.mark.all_cases
@torch.no_grad()
def test_shared_or_changed_parts(change, form):
    model = fill_model(timm.create_model('skresnet18', layers=[3, 1, 1, 1], channels=(32, 32, 64, 64))).eval()
    plain = model(images(size=32))
    change(model)
    expected = model(images(size=32))
    assert distance(expected, plain) > 1e-3
    assert distance(form(model)(images(size=32)), expected) <= 1e-5
