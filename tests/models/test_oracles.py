"""Our nets answer what other implementations answer, for weights filled under upstream's own names."""

import pytest
import timm
import torch
from oracles import load_oracle

from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained import check_state_dict
from timm_sk.pretrained.convert import (
    convert_caffe,
    convert_gluon,
    convert_holocron,
    convert_insight,
    convert_mindcv,
    convert_mindcv_resnest,
    convert_pytorchcv,
    convert_resnest,
)

ORACLES = [
    ('caffe_sknet50', convert_caffe, 'sknet50', 3e-5),
    ('pytorchinsight_sk_resnet50', convert_insight, 'skresnet50_insight', 3e-5),
    ('holocron_sknet50', convert_holocron, 'sknet50_holocron', 3e-5),
    ('mindcv_skresnet18', convert_mindcv, 'skresnet18_mindcv', 1e-4),
    ('mindcv_skresnet50', convert_mindcv, 'skresnet50_mindcv', 1e-4),
    ('mindcv_skresnext50_32x4d', convert_mindcv, 'skresnext50_mindcv', 1e-4),
    ('resnest_resnest50', convert_resnest, 'resnest50d', 3e-5),
    ('resnest_resnest50_fast_1s1x64d', convert_resnest, 'resnest50d_1s1x64d', 3e-5),
    ('resnest_resnest50_fast_2s1x64d', convert_resnest, 'resnest50d_2s1x64d', 3e-5),
    ('resnest_resnest50_fast_1s4x24d', convert_resnest, 'resnest50d_1s4x24d', 3e-5),
    ('resnest_resnest50_fast_4s2x40d', convert_resnest, 'resnest50d_4s2x40d', 3e-5),
    ('gluon_resnest50', convert_gluon, 'resnest50d', 1e-4),
    ('pytorchcv_resnestabc14', convert_pytorchcv, 'resnest14d', 3e-5),
    ('pytorchcv_resnesta18', convert_pytorchcv, 'resnest18', 3e-5),
    ('mindcv_resnest50', convert_mindcv_resnest, 'resnest50_mindcv', 1e-4),
]
ONE_PER_LAYOUT = {row[1]: row[0] for row in reversed(ORACLES)}.values()  # in the default tier
each_oracle = pytest.mark.parametrize(
    ('name', 'convert', 'arch', 'tolerance'),
    [pytest.param(*row, id=row[0], marks=() if row[0] in ONE_PER_LAYOUT else pytest.mark.deep) for row in ORACLES],
)


@each_oracle
@torch.inference_mode()
def test_oracle(name, convert, arch, tolerance, record_property):
    oracle = load_oracle(name)
    model = timm.create_model(arch).eval()
    weights = convert(oracle.weights)
    check_state_dict(weights, {key: tensor.shape for key, tensor in model.state_dict().items()})
    model.load_state_dict(weights, strict=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == oracle.facts['num_params']
    for tag, x in oracle.inputs.items():
        distance = oracle.distance(tag, model(x))
        record_property(tag, distance)
        assert distance <= tolerance, tag


@each_oracle
def test_other_layouts_are_refused(name, convert, arch, tolerance):
    with pytest.raises(MismatchedCheckpointError, match=r'"conv9\.weight" is no key of a'):
        convert({'conv9.weight': torch.zeros(1)})
