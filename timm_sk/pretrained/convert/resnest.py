"""The authors' ResNeSt in PyTorch (zhanghang1989/ResNeSt, resnest/torch/models/): its names are timm's and ours."""

from collections.abc import Mapping

from torch import Tensor

from .layout import NORM, WEIGHT, WEIGHT_AND_BIAS, Layout, Leaves, Module

BLOCK = ('layer{stage}.{block}.', 'layer{stage}.{block}.')


def resnest_net(norm: Leaves) -> list[Module]:
    """The modules outside the blocks, by our names on both sides."""
    return [
        *((name, name, WEIGHT) for name in ('conv1.0', 'conv1.3', 'conv1.6')),
        *((name, name, norm) for name in ('conv1.1', 'conv1.4', 'bn1')),
        ('fc', 'fc', WEIGHT_AND_BIAS),
    ]


def resnest_block(norm: Leaves, *, first_norm: str = 'bn0') -> list[Module]:
    """The modules of a block, by our names on both sides but for the norm after the split attention's convolution."""
    return [
        *((name, name, WEIGHT) for name in ('conv1', 'conv2.conv', 'conv3', 'downsample.1')),
        *((name, name, WEIGHT_AND_BIAS) for name in ('conv2.fc1', 'conv2.fc2')),
        *((name, name, norm) for name in ('bn1', 'conv2.bn1', 'bn3', 'downsample.2')),
        (f'conv2.{first_norm}', 'conv2.bn0', norm),
    ]


# What their class has without the deep stem, and without the pool in the downsample.
_PLAIN_STEM: list[Module] = [('conv1', 'conv1', WEIGHT)]
_PLAIN_DOWNSAMPLE: list[Module] = [
    ('downsample.0', 'downsample.0', WEIGHT),
    ('downsample.1', 'downsample.1', NORM),
]

_LAYOUT = Layout(
    'PyTorch ResNeSt',
    net=[*resnest_net(NORM), *_PLAIN_STEM],
    block=BLOCK,
    modules=[*resnest_block(NORM), *_PLAIN_DOWNSAMPLE],
)


def convert_resnest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' names, or timm's, to ours, which are the same; also the way back.

    Raises:
        MismatchedCheckpointError: If a key is not of this layout.
    """
    return _LAYOUT.to_ours(state_dict)
