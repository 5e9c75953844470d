"""SimCLRv2's nets answer what TensorFlow's and the PyTorch port answer; the projection layer and the whole head."""

import pytest
import timm
import torch
from oracles import load_oracle
from random_weights import fill
from torch import nn
from torch.nn import functional as F
from variants import SIMCLR_NAMES, SIMCLR_PROJ_NAMES, filled, images, shallow

import timm_sk
from timm_sk.models import costs
from timm_sk.models.pools import SameAveragePool
from timm_sk.pretrained import save_safetensors, to_our_layout

pytestmark = pytest.mark.deep

PROJ = 'skresnet50x1_simclr_proj'
# Parameters, parameters without the classifier, and multiply-adds in units of 1e9 at 224.
COSTS = {
    'skresnet50x1_simclr': (37_264_584, 35_215_584, 6.179),
    'skresnet50x2_simclr': (144_403_048, 140_306_048, 24.689),
    'skresnet101x1_simclr': (66_711_304, 64_662_304, 11.857),
    'skresnet101x2_simclr': (261_229_224, 257_132_224, 47.400),
    'skresnet152x1_simclr': (90_989_896, 88_940_896, 17.535),
    'skresnet152x2_simclr': (357_495_528, 353_398_528, 70.111),
    'skresnet152x3_simclr': (800_849_160, 794_704_160, 157.730),
}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize('name', COSTS)
def test_costs(name):
    params, backbone, gmacs = COSTS[name]
    counted = costs.counted()[name, 1000, (3, 224, 224)]
    assert counted[0] == params
    assert counted[0] - 1000 * (timm.create_model(name, device='meta').num_features + 1) == backbone
    assert round(counted[1] / 1e9, 3) == gmacs
    assert list(COSTS) == SIMCLR_NAMES


@pytest.mark.parametrize(
    ('name', 'widths'),
    [
        ('skresnet50x1_simclr', [32, 32, 32, 32]),
        ('skresnet101x2_simclr', [32, 32, 32, 64]),
        ('skresnet152x3_simclr', [32, 32, 48, 96]),
    ],
)
def test_attention_widths(name, widths):
    model = timm.create_model(name, device='meta')
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    assert [stage[-1].conv2.attn.fc_reduce.out_channels for stage in stages] == widths


@pytest.fixture(scope='module')
def oracle():
    return load_oracle('simclr_tf_r50_1x_sk1')


@torch.inference_mode()
def test_pre_logits(oracle):
    model = timm.create_model('skresnet50x1_simclr', num_classes=0).eval()
    weights = to_our_layout(oracle.weights)
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith('fc.')}, strict=False)
    for tag, x in oracle.inputs.items():
        assert distance(model(x), oracle.expected[f'pre_logits.{tag}']) <= 2e-5, tag


@torch.inference_mode()
def test_projection_layer(oracle):
    """TensorFlow's features, with a projection layer and a classifier computed in float64."""
    norms = ('gamma', 'beta', 'moving_mean', 'moving_variance')
    shapes = {'dense/kernel': (2048, 2048), **{f'batch_normalization/{leaf}': (2048,) for leaf in norms}}
    layer = {f'head_contrastive/nl_0/{key}': fill(key, shape, torch.float32) for key, shape in shapes.items()}
    model = timm.create_model(PROJ).eval()
    model.load_state_dict(to_our_layout({**oracle.weights, **layer}), strict=False)
    kernel, gamma, beta, mean, variance = (tensor.double() for tensor in layer.values())
    classifier = [oracle.weights[f'head_supervised/linear_layer/dense/{leaf}'].double() for leaf in ('kernel', 'bias')]
    for tag, x in oracle.inputs.items():
        features = oracle.expected[f'pre_logits.{tag}'].double()
        hidden = ((features @ kernel - mean) / (variance + 1e-5).sqrt() * gamma + beta).relu()
        found = model.forward_head(model.forward_features(x), pre_logits=True)
        assert distance(found, hidden) <= 2e-5, tag
        assert distance(model(x), hidden @ classifier[0] + classifier[1]) <= 2e-5, tag


@torch.inference_mode()
def test_pytorch_port():
    """The port's weights in our net with its pools give its outputs; with TensorFlow's pools they do not."""
    port = load_oracle('simclr_r50_1x_sk1')
    model = timm.create_model('skresnet50x1_simclr').eval()
    model.load_state_dict(to_our_layout(port.weights))
    assert port.distance('s64', model(port.inputs['s64'])) > 0.1
    model.maxpool = nn.MaxPool2d(3, 2, 1)
    for block in (model.layer1[0], model.layer2[0], model.layer3[0], model.layer4[0]):
        stride = block.conv2.paths[0].conv.stride[0]
        block.downsample[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride))
    for tag, x in port.inputs.items():
        assert port.distance(tag, model(x)) <= 3e-5, tag


@pytest.mark.parametrize('layout', ['port', 'tensorflow'])
@torch.inference_mode()
def test_projection_head(layout, tmp_path):
    port = load_oracle('simclr_head_r50_1x')
    named = {f'head.{key}': value for key, value in port.weights.items()}
    save_safetensors(in_tensorflow(port.weights) if layout == 'tensorflow' else named, tmp_path / 'head.safetensors')
    model = timm_sk.simclr_projection(tmp_path / 'head.safetensors')
    if layout == 'tensorflow':
        model[7].bias.copy_(port.weights['layers.7.bias'])  # which upstream leaves out, and the oracle fills
    assert port.distance('vec', model(port.inputs['vec'])) <= 1e-6
    assert [type(module) for module in model] == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear, nn.BatchNorm1d]


def in_tensorflow(head: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The port's head under TensorFlow's names, as it is saved there: without the last beta."""
    leaves = dict(weight='gamma', bias='beta', running_mean='moving_mean', running_var='moving_variance')
    named = {}
    for layer in range(3):
        named[f'head_contrastive/nl_{layer}/dense/kernel'] = head[f'layers.{3 * layer}.weight'].t()
        for ours, theirs in leaves.items():
            named[f'head_contrastive/nl_{layer}/batch_normalization/{theirs}'] = head[f'layers.{3 * layer + 1}.{ours}']
    del named['head_contrastive/nl_2/batch_normalization/beta']
    return named


def test_head_of_the_projection_layer():
    model = filled(PROJ, num_classes=10)
    assert list(model._modules)[-3:] == ['global_pool', 'proj', 'fc']
    features = model.forward_features(images())
    pooled = features.mean((2, 3))
    norm = model.proj[1]
    hidden = F.batch_norm(pooled @ model.proj[0].weight.T, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.allclose(model.forward_head(features, pre_logits=True), hidden.relu(), atol=1e-6)
    assert torch.allclose(model(images()), hidden.relu() @ model.fc.weight.T + model.fc.bias, atol=1e-5)
    model.reset_classifier(0)
    assert torch.allclose(model(images()), hidden.relu(), atol=1e-6)
    model.reset_classifier(7, 'max')
    assert model(images()).shape == (2, 7)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), features)


def test_pool_of_other_width_is_refused():
    with pytest.raises(ValueError, match='takes 512 channels, global_pool="catavgmax" gives twice as many'):
        shallow(PROJ, global_pool='catavgmax')
    model = shallow(PROJ, device='meta')
    with pytest.raises(ValueError, match='use "avg", "max" or "avgmax"'):
        model.reset_classifier(3, 'catavgmax')


def test_projection_layer_needs_two_images_in_train_mode():
    model = filled(PROJ).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with pytest.raises(ValueError, match='needs at least 2 images in train mode'):
        model(images(1))
    assert model(images(2)).isfinite().all()


@torch.no_grad()
def test_projection_layer_is_folded_exported_and_deployed():
    model = filled(PROJ, num_classes=5)
    expected = model(images())
    exported = torch.export.export(model, (images(),)).module()
    assert distance(exported(images()), expected) <= 1e-5
    assert distance(timm.utils.reparameterize_model(model)(images()), expected) <= 1e-5
    assert distance(timm_sk.deploy(model)(images()), expected) <= 1e-4


def test_projection_layer_features_only(tmp_path):
    model = filled(PROJ)
    save_safetensors(model.state_dict(), tmp_path / 'model.safetensors')
    backbone = shallow(
        PROJ, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')), features_only=True
    ).eval()
    assert torch.equal(backbone(images())[-1], model.forward_features(images()))


def test_projection_layer_is_grouped_with_the_head():
    model = shallow(PROJ, device='meta')
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    last = max(groups.values())
    assert {name for name in groups if groups[name] == last} == {
        'proj.0.weight', 'proj.1.weight', 'proj.1.bias', 'fc.weight', 'fc.bias'
    }  # fmt: skip


def test_fresh_blocks_are_shortcuts():
    model = shallow('skresnet50x1_simclr')
    assert not any(block.conv3.bn.weight.any() for stage in (model.layer1, model.layer2) for block in stage)


def test_dilated_stages_pool_at_stride_1():
    model = timm.create_model('skresnet50x1_simclr', output_stride=8, device='meta')
    kinds = [type(stage[0].downsample[0]) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    assert kinds == [SameAveragePool, nn.Sequential, SameAveragePool, SameAveragePool]
    assert model.forward_features(images().to('meta')).shape[-2:] == (8, 8)


def test_shortcut_without_a_pool_keeps_its_convolution():
    model = shallow('skresnet50x1_simclr', avg_down=False, device='meta')
    assert isinstance(model.layer1[0].downsample[0], nn.Conv2d)


def test_default_checkpoints():
    for names, tag in ((SIMCLR_NAMES, 'ft_in1k'), (SIMCLR_PROJ_NAMES, 'ft10_in1k')):
        assert {timm.get_pretrained_cfg(name).tag for name in names} == {tag}
