"""The trunk of three stages: its sizes, and what it does not take."""

import pytest
import timm
import torch
from torch import nn
from variants import CIFAR, blocks_of, images, level_outputs, shallow


def test_sizes():
    model = timm.create_model(CIFAR, device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_256_394
    assert len(model.layer1) == len(model.layer2) == len(model.layer3) == 3
    assert [info['reduction'] for info in model.feature_info] == [1, 1, 2, 4]
    assert [info['num_chs'] for info in model.feature_info] == [64, 256, 512, 1024]
    paths = model.layer1[0].conv2.paths
    assert [(p.conv.groups, p.conv.dilation[0], p.conv.out_channels) for p in paths] == [(32, 1, 512), (32, 2, 512)]
    assert timm.create_model(CIFAR, num_classes=100, device='meta').fc.out_features == 100


@torch.inference_mode()
def test_level_sizes():
    outputs = level_outputs(shallow(CIFAR), images(size=32))
    assert [output.shape[-1] for output in outputs] == [32, 32, 16, 8, 8]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(output_stride=8), 'output stride 2 or 4, got 8'), (dict(layers=[1, 1]), 'three stages')],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(CIFAR, device='meta', **kwargs)


def test_options_together():
    model = shallow(CIFAR, in_chans=1, act_layer='silu', norm_layer='groupnorm1', drop_path_rate=0.3)
    assert not {nn.ReLU, nn.BatchNorm2d} & {type(module) for module in model.modules()}
    assert model.train()(images(1, channels=1, size=32)).isfinite().all()
    assert [block.drop_path.drop_prob for block in blocks_of(model)[1:]] == pytest.approx([0.15, 0.3])
