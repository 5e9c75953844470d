"""Our nets compute what other implementations compute, for weights filled under upstream's own names."""

import pytest
import timm
from oracles import load_oracle

from timm_sk.pretrained import to_our_layout

ORACLES = [
    ('caffe_sknet50', 'sknet50', 3e-5),
    ('pytorchinsight_sk_resnet50', 'skresnet50_insight', 3e-5),
    ('holocron_sknet50', 'sknet50_holocron', 3e-5),
    ('mindcv_skresnet18', 'skresnet18_mindcv', 1e-4),
    ('mindcv_skresnet50', 'skresnet50_mindcv', 1e-4),
    ('mindcv_skresnext50_32x4d', 'skresnext50_mindcv', 1e-4),
    ('resnest_resnest50', 'resnest50d', 3e-5),
    ('resnest_resnest50_fast_1s1x64d', 'resnest50d_1s1x64d', 3e-5),
    ('resnest_resnest50_fast_2s1x64d', 'resnest50d_2s1x64d', 3e-5),
    ('resnest_resnest50_fast_1s4x24d', 'resnest50d_1s4x24d', 3e-5),
    ('resnest_resnest50_fast_4s2x40d', 'resnest50d_4s2x40d', 3e-5),
    ('gluon_resnest50', 'resnest50d', 1e-4),
    ('pytorchcv_resnestabc14', 'resnest14d', 3e-5),
    ('pytorchcv_resnesta18', 'resnest18', 3e-5),
    ('mindcv_resnest50', 'resnest50_mindcv', 1e-4),
]
# One per layout in the default tier.
DEFAULT = [
    'caffe_sknet50',
    'pytorchinsight_sk_resnet50',
    'holocron_sknet50',
    'mindcv_skresnet18',
    'resnest_resnest50',
    'gluon_resnest50',
    'pytorchcv_resnestabc14',
    'mindcv_resnest50',
]


@pytest.mark.parametrize(
    ('name', 'arch', 'tolerance'),
    [pytest.param(*row, id=row[0], marks=() if row[0] in DEFAULT else pytest.mark.deep) for row in ORACLES],
)
def test_oracle(name, arch, tolerance, record_property):
    oracle = load_oracle(name)
    oracle.check(timm.create_model(arch), to_our_layout(oracle.weights, arch=arch), tolerance, record_property)
