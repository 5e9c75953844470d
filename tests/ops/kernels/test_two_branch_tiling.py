"""How groups merge into blocks and outputs are cut into tiles."""

import pytest
import torch

from timm_sk.ops.kernels.two_branch_tiling import block_count, can_take, tiling


@pytest.mark.parametrize(
    ('in_channels', 'channels', 'groups', 'blocks'),
    [
        (128, 128, 32, 4),  # of sknet50: 8 groups of 4
        (256, 256, 32, 8),
        (512, 512, 32, 16),
        (1024, 1024, 32, 32),
        (80, 80, 8, 2),  # of sknet_atto: 40 wide, since 20 is less than 32
        (112, 112, 8, 2),
        (64, 64, 64, 2),  # depthwise
        (16, 16, 1, 1),
        (48, 48, 3, 1),
        (17 * 7, 17 * 7, 7, 1),  # 119 rather than 17
        (17 * 11, 17 * 11, 11, 11),  # 187 is too wide
        (32, 64, 4, 1),
        (64, 256, 8, 2),  # 32 and 128
        (32, 512, 8, None),  # 16 channels in come with 256 out
        (8, 8, 2, None),
        (8, 64, 1, None),
        (136, 136, 1, None),
        (4096, 4096, 16, None),
    ],
)
def test_blocks(in_channels, channels, groups, blocks):
    assert block_count(in_channels, channels, groups) == blocks


PLAIN = dict(kernel_size=(3, 3), stride=(1, 1), paddings=[(1, 1), (2, 2)], dilations=[(1, 1), (2, 2)])


@pytest.mark.parametrize(
    ('changes', 'taken'),
    [
        ({}, True),
        (dict(stride=(2, 2), dtype=torch.float16), True),
        (dict(paddings=[(3, 3), (1, 1)], dilations=[(3, 3), (1, 1)]), True),
        (dict(kernel_size=(5, 5)), False),
        (dict(kernel_size=(3, 1)), False),
        (dict(stride=(3, 3)), False),
        (dict(stride=(1, 2)), False),
        (dict(paddings=[(1, 1), (1, 1)]), False),
        (dict(paddings=[(1, 1), (1, 2)], dilations=[(1, 1), (1, 2)]), False),
        (dict(paddings=[(1, 1)] * 3, dilations=[(1, 1)] * 3), False),
        (dict(dtype=torch.float64), False),
    ],
)
def test_what_is_taken(changes, taken):
    assert can_take(64, 64, 4, **{**PLAIN, 'dtype': torch.bfloat16, **changes}) is taken
    assert not can_take(8, 8, 1, **{**PLAIN, 'dtype': torch.bfloat16, **changes})


@pytest.mark.parametrize('width', [16, 24, 32, 64, 100, 128])
@pytest.mark.parametrize('size', [(56, 56), (28, 28), (14, 14), (7, 7), (1, 1), (57, 33), (1, 300)])
def test_tiles_cover_the_output_and_little_more(size, width):
    cut = tiling(*size, width, width, 2)
    assert cut.down * cut.tile_h >= size[0] > (cut.down - 1) * cut.tile_h
    assert cut.across * cut.tile_w >= size[1] > (cut.across - 1) * cut.tile_w
    assert cut.tiles == cut.down * cut.across
    assert cut.block_n >= width > cut.block_n // 2
    assert cut.tile_h * cut.tile_w * cut.block_n <= 8192
    assert cut.block_k in (16, 32)
