"""ResNeSt: its blocks, the defects of timm's blocks, and the sizes that the authors print."""

import re

import pytest
import timm
import timm.layers
import timm.models
import timm.models.resnest
import torch
from oracles import load_oracle
from random_weights import fill_model, make_input
from subprocesses import ROOT
from torch import nn
from variants import RESNESTS, TIMM_RESNESTS, images, shallow, upstream

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.models import costs
from timm_sk.models.pools import SameAveragePool
from timm_sk.models.resnest_blocks import SplitAttentionBottleneck

DOCUMENT = (ROOT / 'docs' / 'resnest.md').read_text()
TIMMS = timm.models.resnest.ResNestBottleneck
each_block = pytest.mark.parametrize(
    'block', [SplitAttentionBottleneck, pytest.param(TIMMS, marks=pytest.mark.xfail(strict=True, reason="timm's"))]
)


def make_block(block: type[nn.Module], inplanes: int = 64, planes: int = 16, **kwargs: object) -> nn.Module:
    return fill_model(block(inplanes, planes, **{'radix': 2, 'base_width': 64, **kwargs}))


@each_block
def test_stochastic_depth_drops_the_residual_branch(block):
    made = make_block(block, drop_path=timm.layers.DropPath(1 - 1e-9, scale_by_keep=False))
    x = make_input((4, 64, 8, 8))
    assert torch.equal(made.train()(x), x.relu())
    assert not torch.equal(made.eval()(x), x.relu())


@each_block
def test_stochastic_depth_keeps_the_shortcut(block):
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64))
    dropped = timm.layers.DropPath(1 - 1e-9, scale_by_keep=False)
    made = make_block(block, 32, downsample=downsample, drop_path=dropped).train()
    x = make_input((4, 32, 8, 8))
    torch.testing.assert_close(made(x), downsample(x).relu())


@each_block
def test_act_layer_reaches_the_attention(block):
    made = make_block(block, act_layer=nn.SiLU)
    assert not any(isinstance(module, nn.ReLU) for module in made.modules())


@each_block
def test_batch_of_one_in_train_mode(block):
    with pytest.raises(ValueError, match='use a larger batch'):
        make_block(block).train()(make_input((1, 64, 8, 8)))


@pytest.mark.parametrize('make', [timm.create_model, pytest.param(upstream, marks=pytest.mark.xfail(strict=True))])
def test_oracle_of_the_dilated_net(make, record_property):
    oracle = load_oracle('resnest_resnest50_dilation2')
    oracle.check(make('resnest50d', output_stride=16), oracle.weights, 3e-5, record_property)


@pytest.mark.parametrize('name', TIMM_RESNESTS)
@pytest.mark.parametrize(('output_stride', 'dilated'), [(16, ['layer4']), (8, ['layer3', 'layer4'])])
@torch.inference_mode()
def test_dilated_stages_are_the_authors(name, output_stride, dilated):
    """timm's net, corrected: in a dilated stage no pool in the shortcut, and a pool of stride 1 in the first block."""
    options = dict(layers=[1, 2, 2, 2], channels=(32, 64, 96, 160), output_stride=output_stride)
    ours, theirs = (fill_model(make(name, **options)).double().eval() for make in (timm.create_model, upstream))
    x = images(dtype=torch.float64)
    assert not torch.allclose(ours(x), theirs(x), rtol=1e-3)
    for stage in dilated:
        first = getattr(theirs, stage)[0]
        first.downsample[0] = nn.Identity()
        place = 'avd_first' if theirs.layer2[0].avd_first is not None else 'avd_last'
        setattr(first, place, nn.AvgPool2d(3, stride=1, padding=1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('avd_first', [False, True])
def test_is_first(avd_first):
    kwargs = dict(avd=True, avd_first=avd_first, is_first=True)
    ours, theirs = (make_block(block, **kwargs).eval() for block in (SplitAttentionBottleneck, TIMMS))
    x = make_input((2, 64, 8, 8))
    torch.testing.assert_close(ours(x), theirs(x))
    assert not torch.allclose(ours(x), make_block(SplitAttentionBottleneck, avd=True).eval()(x), rtol=1e-3)


@pytest.mark.deep
@pytest.mark.parametrize(
    ('radix', 'cardinality', 'base_width'), [(1, 1, 64), (2, 1, 64), (4, 1, 64), (1, 2, 40), (2, 2, 40)]
)
@torch.inference_mode()
def test_ablation_nets_are_timms_class_with_other_numbers(radix, cardinality, base_width):
    """Every layer at its full depth; three of them have no oracle."""
    ours = timm.create_model(f'resnest50d_{radix}s{cardinality}x{base_width}d')
    theirs = timm.models.resnest.resnest50d_1s4x24d(
        cardinality=cardinality, base_width=base_width, block_args=dict(radix=radix, avd=True, avd_first=True)
    )
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    x = images(1)
    expected = fill_model(theirs).eval()(x)
    torch.testing.assert_close(fill_model(ours).eval()(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('kwargs', [dict(cardinality=2), dict(base_width=32)])
def test_wrong_arguments_of_basic_blocks(kwargs):
    with pytest.raises(ValueError, match='A basic block needs cardinality=1 and base_width=64'):
        shallow('resnest18', **kwargs)


@pytest.mark.parametrize('kwargs', [dict(aa_layer=timm.layers.BlurPool2d), dict(block_reduce_first=2)])
def test_wrong_arguments_of_bottlenecks(kwargs):
    with pytest.raises(ValueError, match='takes neither block_reduce_first nor aa_layer'):
        shallow('resnest14d', **kwargs)


@torch.inference_mode()
def test_attn_layer():
    model = fill_model(shallow('resnest50d', block_args=dict(radix=2, avd=True, attn_layer='se'))).eval()
    se = model.layer1[0].se
    x = make_input((2, 64, 8, 8))
    block = model.layer1[0]
    torch.testing.assert_close(block(x), (se(block.residual(x)) + block.downsample(x)).relu())


@pytest.mark.parametrize('size', [(6, 6), (7, 7), (6, 9), (1, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_same_average_pool(size, stride):
    x = make_input((2, 3, *size))
    found = SameAveragePool(3, stride)(x)

    def starts_of(length: int) -> list[int]:
        count = -(-length // stride)
        before = max((count - 1) * stride + 3 - length, 0) // 2
        return [i * stride - before for i in range(count)]

    starts = [starts_of(length) for length in size]
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            window = x[..., max(top, 0) : top + 3, max(left, 0) : left + 3]
            torch.testing.assert_close(found[..., i, j], window.mean((2, 3)))
    assert found.shape[2:] == tuple(map(len, starts))


EXAMPLES = re.findall(r'^```python\n(.*?)^```', DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize('example', [example for example in EXAMPLES if 'pretrained=True' not in example])
def test_examples_of_the_document(example, capsys):
    exec(compile(example, 'docs/resnest.md', 'exec'), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r'^print\(.*\)  # (.*)$', example, re.MULTILINE)


@pytest.mark.parametrize('name', RESNESTS)
def test_every_name_is_documented(name):
    assert f'`{name}`' in DOCUMENT


@pytest.mark.deep
def test_sizes_in_the_document():
    """Image size, millions of parameters and GMACs of each net, ours and the authors'."""
    rows = re.findall(
        r'^\| `(\w+)` \| (\d+) \| ([\d.]+) M \| ([\d.]+|-) ?M? \| ([\d.]+) \| ([\d.]+|-) \|', DOCUMENT, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(
        dict.fromkeys(row.arch for row in CHECKPOINTS.values() if row.family == 'resnest')
    )
    for name, size, *numbers in rows:
        params, authors_params, macs, authors_macs = (float('nan' if x == '-' else x) for x in numbers)
        counted, counted_macs = costs.counted()[name, 1000, (3, int(size), int(size))]
        assert f'{counted / 1e6:.2f}' == f'{params:.2f}'
        assert f'{counted_macs / 1e9:.3f}' == f'{macs:.3f}'
        assert not abs(params / authors_params - 1) > 0.01  # true where the authors print none
        assert not abs(macs / authors_macs - 1) > 0.01
