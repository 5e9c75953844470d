"""Every source of the table: names and shapes of its layout, and conversion of each container."""

import pytest
import timm
import torch
from upstream_files import in_their_layout, rehearse

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.errors import UnobtainableCheckpointError
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import to_our_layout

pytestmark = pytest.mark.deep

SOURCES = {
    f'{row.name}-{index}': (row, source)
    for row in CHECKPOINTS.values()
    for index, source in enumerate(row.sources)
    if source.kind != 'bundled'
}

# With those of `test_backbone` one of each container, and of most layouts.
# `python tests/upstream_files.py` goes through all.
COMPLETE = [
    'skresnet18.ra_in1k-2',
    'skresnet18.ra_in1k-3',
    'sknet50.implus_in1k-0',
    'skresnet50_insight.insight_in1k-0',
    'skresnet18_mindcv.mindcv_in1k-0',
    'resnest50d_1s1x64d.in1k-0',
    'resnest50d_1s1x64d.gluon_in1k-0',
    'resnest18.imgclsmob_in1k-0',
    'skresnet50x1_simclr.linear_in1k-0',
    'skresnet50x1_simclr_proj.ft1_in1k-0',
    'resnest18.gluoncv2_in1k-0',
    'resnest50_paddle.paddle_in1k-0',
    'resnest50d.mindspore_in1k-0',
    'resnest50d.detectron2-0',
    'resnest50d.openmmlab-0',
    'sknet50_syt2.syt2_in1k-0',
    'lsknet_t.in1k-0',
]


@pytest.mark.parametrize('name', SOURCES)
def test_names_and_shapes(name):
    row, source = SOURCES[name]
    ours = timm.create_model(row.arch, num_classes=row.num_classes, device='meta').state_dict()
    back = to_our_layout(in_their_layout(ours, row, source), arch=row.arch)
    expected = shapes_of(row)
    counters = {key for key in expected if key.endswith('num_batches_tracked')}
    encoder = set() if source.has_classifier else {'fc.weight', 'fc.bias'}
    assert expected.keys() - back.keys() <= counters | encoder
    assert all(expected[key] == tensor.shape for key, tensor in back.items())


@pytest.mark.parametrize('name', COMPLETE)
def test_complete_file(name, tmp_path, monkeypatch):
    row, source = SOURCES[name]
    monkeypatch.setenv('TIMM_SK_HOME', str(rehearse(row, source, tmp_path)))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    num_classes = row.num_classes if source.has_classifier else 0
    model = timm.create_model(row.name, pretrained=True, num_classes=num_classes).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize('name', ['resnest50d.coco_faster_rcnn-0', 'resnest50d.ade_deeplab-0'])
def test_backbone(name, tmp_path, monkeypatch):
    row, source = SOURCES[name]
    monkeypatch.setenv('TIMM_SK_HOME', str(rehearse(row, source, tmp_path)))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    backbone = timm.create_model(row.name, pretrained=True, features_only=True, output_stride=8, out_indices=(1, 4))
    backbone.eval()
    assert [features.shape[1:] for features in backbone(torch.randn(1, 3, 64, 64))] == [(256, 16, 16), (2048, 8, 8)]
    with pytest.raises(
        UnobtainableCheckpointError, match=r'^resnest50d\.\w+ is a backbone without a classifier: use `num_classes=0`'
    ):
        timm.create_model(row.name, pretrained=True)
