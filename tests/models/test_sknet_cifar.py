"""The trunk of three stages: what tests of all trunks do not see."""

import pytest
import timm
from variants import CIFAR


@pytest.mark.parametrize(
    ('name', 'channels', 'width', 'groups'),
    [(CIFAR, [64, 256, 512, 1024], 512, 32), ('sknet17_1x32d', [64, 64, 128, 256], 32, 1)],
)
def test_levels_and_branches(name, channels, width, groups):
    model = timm.create_model(name, device='meta')
    assert [info['num_chs'] for info in model.feature_info] == channels
    paths = [path.conv for path in model.layer1[0].conv2.paths]
    found = [(conv.dilation[0], conv.out_channels, conv.groups) for conv in paths]
    assert found == [(1, width, groups), (2, width, groups)]
    assert model.layer1[0].conv2.attn.fc_reduce.out_channels == 32


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(output_stride=8), 'output stride 2 or 4, got 8'), (dict(layers=[1, 1]), 'three stages')],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(CIFAR, device='meta', **kwargs)
