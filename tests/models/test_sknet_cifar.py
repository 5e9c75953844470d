"""The trunk of three stages: what tests of all trunks do not see."""

import pytest
import timm
from variants import CIFAR


def test_levels_and_branches():
    model = timm.create_model(CIFAR, device='meta')
    assert [info['num_chs'] for info in model.feature_info] == [64, 256, 512, 1024]
    assert [path.conv.dilation[0] for path in model.layer1[0].conv2.paths] == [1, 2]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(output_stride=8), 'output stride 2 or 4, got 8'), (dict(layers=[1, 1]), 'three stages')],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(CIFAR, device='meta', **kwargs)
