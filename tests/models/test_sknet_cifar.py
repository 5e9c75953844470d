"""The trunk of three stages: its sizes, and what it does not take."""

import pytest
import timm
from variants import CIFAR


def test_sizes():
    model = timm.create_model(CIFAR, device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_256_394
    assert len(model.layer1) == len(model.layer2) == len(model.layer3) == 3
    assert [info['reduction'] for info in model.feature_info] == [1, 1, 2, 4]
    assert [info['num_chs'] for info in model.feature_info] == [64, 256, 512, 1024]
    paths = model.layer1[0].conv2.paths
    assert [(p.conv.groups, p.conv.dilation[0], p.conv.out_channels) for p in paths] == [(32, 1, 512), (32, 2, 512)]
    assert timm.create_model(CIFAR, num_classes=100, device='meta').fc.out_features == 100


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(output_stride=8), 'output stride 2 or 4, got 8'), (dict(layers=[1, 1]), 'three stages')],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(CIFAR, device='meta', **kwargs)
