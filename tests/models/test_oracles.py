"""Our nets compute what other implementations compute, for weights filled under upstream's own names."""

import pytest
import timm
from oracles import load_oracle

from timm_sk.pretrained import to_our_layout

deep = pytest.mark.deep


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
    ],
)
def test_oracle(name, arch, tolerance, record_property):
    oracle = load_oracle(name)
    oracle.check(timm.create_model(arch), to_our_layout(oracle.weights, arch=arch), tolerance, record_property)
