"""Our nets compute what other implementations compute, for weights filled under upstream's own names."""

import pytest
import timm
import torch
from oracles import load_oracle

from timm_sk.pretrained import to_our_layout

deep = pytest.mark.deep
WITHOUT_BIAS = {'mindspore': ('fc1.bias', 'fc2.bias'), 'paddle': ('fc1.bias',)}  # where ours have one of 0


@pytest.mark.parametrize(  # in the default tier one of each layout
    ('name', 'arch', 'tolerance'),
    [
        ('caffe_sknet50', 'sknet50', 3e-5),
        ('pytorchinsight_sk_resnet50', 'skresnet50_insight', 3e-5),
        ('holocron_sknet50', 'sknet50_holocron', 3e-5),
        ('mindcv_skresnet18', 'skresnet18_mindcv', 1e-4),
        pytest.param('mindcv_skresnet50', 'skresnet50_mindcv', 1e-4, marks=deep),
        pytest.param('mindcv_skresnext50_32x4d', 'skresnext50_mindcv', 1e-4, marks=deep),
        ('resnest_resnest50', 'resnest50d', 3e-5),
        pytest.param('resnest_resnest50_fast_1s1x64d', 'resnest50d_1s1x64d', 3e-5, marks=deep),
        pytest.param('resnest_resnest50_fast_2s1x64d', 'resnest50d_2s1x64d', 3e-5, marks=deep),
        pytest.param('resnest_resnest50_fast_1s4x24d', 'resnest50d_1s4x24d', 3e-5, marks=deep),
        pytest.param('resnest_resnest50_fast_4s2x40d', 'resnest50d_4s2x40d', 3e-5, marks=deep),
        ('gluon_resnest50', 'resnest50d', 1e-4),
        ('pytorchcv_resnestabc14', 'resnest14d', 3e-5),
        pytest.param('pytorchcv_resnesta18', 'resnest18', 3e-5, marks=deep),
        ('mindcv_resnest50', 'resnest50_mindcv', 1e-4),
        ('simclr_tf_r50_1x_sk1', 'skresnet50x1_simclr', 1e-5),
        pytest.param('simclr_tf_r50_2x_sk1', 'skresnet50x2_simclr', 1e-5, marks=deep),
        ('gluoncv2_resnestabc14', 'resnest14d', 3e-5),
        pytest.param('gluoncv2_resnesta18', 'resnest18', 3e-5, marks=deep),
        ('mindspore_resnest50', 'resnest50d', 3e-5),
        ('paddle_resnest50', 'resnest50_paddle', 3e-5),
        pytest.param('paddle_resnest50_fast_1s1x64d', 'resnest50_1s1x64d_paddle', 3e-5, marks=deep),
        ('pytorchcv_sknet50', 'skresnext50_32x4d', 3e-5),
        ('syt2_sknet50', 'sknet50_syt2', 3e-5),
    ],
)
def test_oracle(name, arch, tolerance, record_property):
    oracle = load_oracle(name)
    weights, lacking = to_our_layout(oracle.weights, arch=arch), WITHOUT_BIAS.get(name.partition('_')[0], ())
    oracle.check(timm.create_model(arch), weights, tolerance, record_property, lacking=lacking)


@torch.inference_mode()
def test_oracle_of_a_dilated_backbone(record_property):
    oracle = load_oracle('encoding_resnest50')
    model = timm.create_model('resnest50d', num_classes=0, output_stride=8).eval()
    model.load_state_dict(to_our_layout(oracle.weights, arch='resnest50d'))
    for tag, x in oracle.inputs.items():
        maps = model.forward_intermediates(x, indices=[3, 4], intermediates_only=True)
        distance = oracle.distance(tag, torch.cat([features.mean((2, 3)) for features in maps], dim=1))
        record_property(tag, distance)
        assert distance <= 3e-5, tag
