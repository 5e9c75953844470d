"""The paper's nets: differences, and its ablations."""

import pytest
import timm
import timm.layers
import timm.models
import torch
from ablations import CONTROLS, TABLE_6, TABLE_7, table
from random_weights import fill_model
from subprocesses import ROOT
from torch import nn
from variants import images, stages


@torch.inference_mode()
def test_skresnext50_is_sknet50_with_another_pool():
    ours, timms = (fill_model(timm.create_model(name)).eval() for name in ('sknet50', 'skresnext50_32x4d'))
    x = images(size=64)
    assert not torch.equal(ours(x), timms(x))
    timms.maxpool = ours.maxpool
    assert torch.equal(ours(x), timms(x))
    corner = torch.zeros(1, 1, 6, 6)
    corner[..., 1, 1] = 1
    assert ours.maxpool(corner).shape == (1, 1, 3, 3)
    assert ours.maxpool(corner).nonzero()[:, 2:].tolist() == [[0, 0]]  # seen by the first window alone


def test_attention_widths_of_sknet101():
    def widths(**kwargs):
        model = timm.create_model('sknet101', device='meta', **kwargs)
        return [stage[0].conv2.attn.fc_reduce.out_channels for stage in stages(model)]

    assert widths() == [32, 16, 32, 64]
    assert widths(sk_kwargs=dict(rd_channels=None)) == [32, 32, 32, 64]
    assert widths(sk_kwargs=dict(rd_channels=8)) == [8, 8, 8, 8]
    with pytest.raises(ValueError, match=r'one entry per stage, got \[1, 2\] for 4 stages'):
        widths(sk_kwargs=dict(rd_channels=[1, 2]))


def test_sk_kwargs_are_merged_key_by_key():
    unit = timm.create_model('sknet26', device='meta', sk_kwargs=dict(kernel_size=[3, 7])).layer1[0].conv2
    assert [path.conv.dilation[0] for path in unit.paths] == [1, 3]
    assert [path.conv.groups for path in unit.paths] == [32, 32]
    assert unit.attn.fc_reduce.out_channels == 32
    unit = timm.create_model('sknet26', device='meta', sk_kwargs=dict(rd_ratio=1 / 4, rd_divisor=8)).layer4[0].conv2
    assert unit.attn.fc_reduce.out_channels == 256
    with pytest.raises(ValueError, match=r'Unknown sk_kwargs: kernel_sizes\. There are: layer, aa_layer'):
        timm.create_model('sknet26', sk_kwargs=dict(kernel_sizes=[3, 5]))
    with pytest.raises(ValueError, match='one entry per branch'):
        timm.create_model('sknet26', sk_kwargs=dict(groups=[1, 2, 3]))


@pytest.mark.parametrize('row', [*TABLE_6, *TABLE_7], ids=lambda row: row.label)
@torch.inference_mode()
def test_ablations(row):
    model = timm.create_model('sknet50', layers=[1, 1, 1, 1], **row.kwargs).eval()
    unit = model.layer1[0].conv2
    convs = [[conv for conv in path.modules() if isinstance(conv, nn.Conv2d)] for path in unit.paths]
    found = [(path[0].kernel_size[0], path[0].dilation[0], path[0].groups) for path in convs]
    assert found == row.branches
    assert (unit.attn is not None) == row.selects
    assert model(images()).isfinite().all()


def test_table_7_has_all_subsets():
    assert len({(tuple(row.branches), row.selects) for row in TABLE_7}) == 14


def test_controls_are_timms():
    for control in CONTROLS:
        model = timm.create_model(control.name, device='meta', **control.kwargs)
        assert isinstance(model.layer1[0], timm.models.resnet.Bottleneck)


@pytest.mark.deep
def test_tables_of_the_document():
    document = (ROOT / 'docs' / 'sknet.md').read_text()
    assert all(table(rows) in document for rows in (TABLE_6, TABLE_7, CONTROLS))


@torch.inference_mode()
def test_small_and_odd_images():
    model = timm.create_model('sknet26', layers=[1, 1, 1, 1]).eval()
    for size in (3, 5, 31, 33):
        assert model(images(size=size)).isfinite().all()
    for size in (1, 2):
        with pytest.raises(ValueError, match='needs 2x2 features, got 1x1: use images of at least 3x3 pixels'):
            model(images(size=size))
