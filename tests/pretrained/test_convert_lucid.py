"""Lucid's state dicts under our names: an exact map."""

import pytest
import timm
import timm.models
import torch
from oracles import load_oracle

from timm_sk import lucid
from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained.convert import (
    convert_lucid,
    convert_lucid3,
    convert_lucid3_resnest,
    recognise,
    to_lucid,
    to_lucid3,
    to_lucid3_resnest,
)


@pytest.mark.parametrize('name', ['sk_resnet_18', 'sk_resnet_50'])
def test_every_tensor_arrives_and_none_is_missing(name):
    shapes = {key: torch.empty(shape, device='meta') for key, shape, _ in load_oracle(f'lucid_{name}').facts['tensors']}
    converted = convert_lucid(shapes)
    ours = timm.create_model(name, device='meta').state_dict()
    assert len(converted) == len(shapes)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in ours.items() if not k.endswith('num_batches_tracked')
    }


def test_tensors_are_not_changed():
    upstream = {
        'layer2.0.sk_module.branches.1.weight': torch.randn(4, 4, 5, 5),
        'layer2.0.sk_module.attention.4.weight': torch.randn(2, 1, 1, 1),
        'layer2.0.conv3.1.running_var': torch.rand(4),
        'stem.1.bias': torch.randn(4),
        'fc.bias': torch.randn(1, 7),
    }
    converted = convert_lucid(upstream)
    assert list(converted) == [
        'layer2.0.conv2.paths.1.weight',
        'layer2.0.conv2.attn.fc_select.weight',
        'layer2.0.conv3.bn.running_var',
        'bn1.bias',
        'fc.bias',
    ]
    assert torch.equal(converted['fc.bias'], upstream['fc.bias'][0])
    assert all(
        converted[key] is tensor for key, tensor in zip(converted, upstream.values(), strict=True) if key != 'fc.bias'
    )


def test_deep_stem():
    ours = lucid.SKNet(lucid.SKBasicBlock, [1, 1, 1, 1], stem_type='deep', device='meta').state_dict()
    stem = [key for key in ours if key.startswith('conv1.') and not key.endswith('num_batches_tracked')]
    theirs = {f'stem.{key.removeprefix("conv1.")}': ours[key] for key in stem}
    assert list(convert_lucid(theirs)) == stem
    assert list(to_lucid(convert_lucid(theirs))) == list(theirs)


@pytest.mark.parametrize('avg_down', [False, True])
def test_downsamples_with_and_without_a_pool(avg_down):
    ours = lucid.SKNet(lucid.SKBasicBlock, [1, 1, 1, 1], avg_down=avg_down, device='meta').state_dict()
    theirs = to_lucid(ours)
    assert f'layer2.0.downsample.{int(avg_down)}.weight' in theirs
    assert list(convert_lucid(theirs)) == [key for key in ours if not key.endswith('num_batches_tracked')]


@pytest.mark.parametrize('key', ['layer1.0.conv2.paths.0.weight', 'stem.2.weight', 'conv1.weight', 'layer1.x.bn2.bias'])
def test_unknown_names_are_refused(key):
    with pytest.raises(MismatchedCheckpointError, match=f'"{key}" is no key of a Lucid'):
        convert_lucid({key: torch.zeros(1)})


@pytest.mark.parametrize(
    ('name', 'convert', 'back'),
    [
        ('skresnet18', convert_lucid3, to_lucid3),
        ('skresnet34', convert_lucid3, to_lucid3),
        ('resnest50d', convert_lucid3_resnest, to_lucid3_resnest),
        ('resnest269e', convert_lucid3_resnest, to_lucid3_resnest),
    ],
)
def test_version_3(name, convert, back):
    """No state dict of version 3 is at hand: its names are those that its documents and code tell."""
    ours = getattr(timm.models, name)(device='meta').state_dict()
    theirs = back(ours)
    stem = {'stem.0.weight', 'stem.1.running_mean'} if 'sk' in name else {'conv1.6.weight', 'bn1.running_mean'}
    assert {'classifier.weight', 'classifier.bias', *stem} <= set(theirs)
    assert {key for key in ours if key not in theirs} == (
        {key for key in ours if key.startswith(('fc.', 'conv1.', 'bn1.'))} if 'sk' in name else {'fc.weight', 'fc.bias'}
    )
    assert list(convert(theirs)) == list(ours)
    assert recognise(theirs) is convert
