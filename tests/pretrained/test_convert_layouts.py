"""Every layout is one table, exact in both directions, and none can be taken for another."""

import pytest
import timm
import torch
from oracles import load_oracle
from torch import Tensor

from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained import convert
from timm_sk.pretrained.convert import recognise
from timm_sk.pretrained.convert.layout import WEIGHT, Layout
from timm_sk.pretrained.convert.recognize import SIGNATURES

# oracle, to ours, to theirs
LAYOUTS = [
    ('caffe_sknet50', convert.convert_caffe, convert.to_caffe),
    ('gluon_resnest50', convert.convert_gluon, convert.to_gluon),
    ('holocron_sknet50', convert.convert_holocron, convert.to_holocron),
    ('pytorchinsight_sk_resnet50', convert.convert_insight, convert.to_insight),
    ('lucid_selective_kernel_1', convert.convert_lucid, convert.to_lucid),
    ('lucid_selective_kernel_3', convert.convert_lucid, convert.to_lucid),
    ('lucid_sk_resnet_18', convert.convert_lucid, convert.to_lucid),
    ('lucid_sk_resnet_50', convert.convert_lucid, convert.to_lucid),
    ('lucid_resnest_50', convert.convert_lucid, convert.to_lucid),
    ('mindcv_skresnet18', convert.convert_mindcv, convert.to_mindcv),
    ('mindcv_skresnet50', convert.convert_mindcv, convert.to_mindcv),
    ('mindcv_skresnext50_32x4d', convert.convert_mindcv, convert.to_mindcv),
    ('mindcv_resnest50', convert.convert_mindcv_resnest, convert.to_mindcv_resnest),
    ('pytorchcv_resnesta18', convert.convert_pytorchcv, convert.to_pytorchcv),
    ('pytorchcv_resnestabc14', convert.convert_pytorchcv, convert.to_pytorchcv),
]
IDS = [name for name, _, _ in LAYOUTS]
WITHOUT_COUNTER = {convert.to_caffe, convert.to_gluon, convert.to_lucid, convert.to_mindcv, convert.to_mindcv_resnest}


def unfilled(name: str) -> dict[str, Tensor]:
    """The oracle's tensors by upstream's names, with whatever the memory held."""
    tensors = load_oracle(name).facts['tensors']
    state_dict = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in tensors}
    if name.startswith('lucid') and 'fc.bias' in state_dict:
        state_dict['fc.bias'] = state_dict['fc.bias'][None]  # [1, classes] in Lucid, flat in the oracle's list
    return state_dict


def identities(state_dict: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    """Names, shapes and memory of the tensors, in order."""
    return [(key, tuple(tensor.shape), tensor.data_ptr()) for key, tensor in state_dict.items()]


@pytest.mark.parametrize(('name', 'to_ours', 'to_theirs'), LAYOUTS, ids=IDS)
def test_round_trip(name, to_ours, to_theirs):
    theirs = unfilled(name)
    ours = to_ours(theirs)
    assert list(ours) != list(theirs)
    assert identities(to_theirs(ours)) == identities(theirs)
    assert identities(to_ours(to_theirs(ours))) == identities(ours)


@pytest.mark.parametrize(('name', 'to_ours', 'to_theirs'), LAYOUTS, ids=IDS)
def test_counters_of_batches_have_a_way_back_only_where_upstream_has_them(name, to_ours, to_theirs):
    ours = {}
    for key, tensor in to_ours(unfilled(name)).items():
        ours[key] = tensor
        if key.endswith('.running_var'):
            ours[key.replace('.running_var', '.num_batches_tracked')] = torch.zeros((), dtype=torch.int64)
    back = to_ours(to_theirs(ours))
    counters = [key for key in ours if key.endswith('num_batches_tracked')]
    assert counters
    assert list(back) == [key for key in ours if to_theirs not in WITHOUT_COUNTER or key not in counters]


@pytest.mark.parametrize(('name', 'to_ours', 'to_theirs'), LAYOUTS, ids=IDS)
def test_recognised(name, to_ours, to_theirs):
    theirs = unfilled(name)
    assert recognise(theirs) is to_ours
    assert {converter for keys, converter in SIGNATURES.items() if {*keys} <= theirs.keys()} == {to_ours}
    family = convert.convert_resnest if 'resnest' in name else None
    assert recognise(to_ours(theirs)) is family


@pytest.mark.parametrize(
    'name', ['skresnet18', 'skresnext50_32x4d', 'sknet50', 'sk_resnet_18', 'resnet50', 'sknet_atto']
)
def test_nobodys_layout_is_not_recognised(name):
    assert recognise(timm.create_model(name, device='meta').state_dict()) is None


@pytest.mark.parametrize('signature', SIGNATURES)
def test_a_signature_has_a_place_in_one_layout(signature):
    state_dict = {key: torch.zeros(1) for key in signature}
    assert recognise(state_dict) is SIGNATURES[signature]
    for converter in set(SIGNATURES.values()):
        if converter is SIGNATURES[signature]:
            assert len(converter(state_dict)) == len(signature)
        else:
            with pytest.raises(MismatchedCheckpointError, match='is no key of a'):
                converter(state_dict)


@pytest.mark.parametrize(('name', 'to_ours', 'to_theirs'), LAYOUTS, ids=IDS)
def test_the_first_key_without_a_place_is_named(name, to_ours, to_theirs):
    theirs = unfilled(name)
    strangers = {'layer1.0.conv9.weight': torch.zeros(1), 'fc.gain': torch.zeros(1)}
    with pytest.raises(MismatchedCheckpointError, match=r'^"layer1\.0\.conv9\.weight" is no key of a .* state dict\.'):
        to_ours({**theirs, **strangers})
    with pytest.raises(
        MismatchedCheckpointError, match=r'^"layer1\.0\.conv9\.weight" has no place in a .* state dict:'
    ):
        to_theirs({**to_ours(theirs), **strangers})


@pytest.mark.parametrize(
    ('to_ours', 'key'),
    [
        (convert.convert_caffe, 'conv1_1/1x1_reduce:0'),  # stages count from 2
        (convert.convert_caffe, 'conv2_0/1x1_reduce:0'),  # blocks from 1
        (convert.convert_caffe, 'conv6_1/1x1_reduce:0'),
        (convert.convert_caffe, 'conv2_01/1x1_reduce:0'),
        (convert.convert_caffe, 'conv2_1/1x1_reduce:1'),
        (convert.convert_caffe, 'conv2_1/1x1_reduce/bn:4'),
        (convert.convert_caffe, 'conv2_1/B_fc2/bn:0'),
        (convert.convert_holocron, 'features.3.0.conv.0.weight'),
        (convert.convert_holocron, 'features.8.0.conv.0.weight'),
        (convert.convert_insight, 'layer1.0.conv1.bias'),
        (convert.convert_insight, 'layer0.0.conv1.weight'),
        (convert.convert_pytorchcv, 'features.stage1.unit0.body.conv1.conv.weight'),
        (convert.convert_pytorchcv, 'xfeatures.stage1.unit1.body.conv1.conv.weight'),
        (convert.convert_pytorchcv, 'features.stage1.unit1.body.conv1.conv.weight\n'),
        (convert.convert_mindcv, 'layer1.0.conv1.0.gamma'),
        (convert.convert_mindcv, f'layer1.{"9" * 5000}.conv1.0.weight'),
        (convert.convert_mindcv_resnest, 'classifier.weight'),
        (convert.convert_gluon, 'layer1.0.conv2.bn0.gamma'),
        (convert.convert_gluon, 'bn1.num_batches_tracked'),
        (convert.convert_resnest, 'layer1.0.conv2.weight'),
        (convert.convert_resnest, 'module.bn1.weight'),
    ],
)
def test_no_key_beside_the_table(to_ours, key):
    with pytest.raises(MismatchedCheckpointError, match='is no key of a'):
        to_ours({key: torch.zeros(1)})


def test_two_keys_that_become_one_are_refused():
    layout = Layout('test', net=[('a{path}', 'x{path}', WEIGHT), ('b', 'x0', WEIGHT), ('a1', 'y', WEIGHT)])
    assert list(layout.to_ours({'a0.weight': torch.zeros(1), 'a2.weight': torch.zeros(1)})) == [
        'x0.weight',
        'x2.weight',
    ]
    with pytest.raises(MismatchedCheckpointError, match=r'Two keys become "x0\.weight", one of them "b\.weight"'):
        layout.to_ours({'a0.weight': torch.zeros(1), 'b.weight': torch.zeros(1)})
    with pytest.raises(MismatchedCheckpointError, match=r'Two keys become "a1\.weight", one of them "y\.weight"'):
        layout.to_theirs({'x1.weight': torch.zeros(1), 'y.weight': torch.zeros(1)})


def test_shapes_of_caffe_and_lucid_come_back():
    blob, bias = torch.randn(1, 4, 1, 1), torch.randn(1, 7)
    ours = convert.convert_caffe({'conv2_1/B_fc1/bn:3': blob})
    assert torch.equal(ours['layer1.0.conv2.attn.bn.running_var'], blob[0, :, 0, 0])
    assert torch.equal(convert.to_caffe(ours)['conv2_1/B_fc1/bn:3'], blob)
    ours = convert.convert_lucid({'fc.bias': bias})
    assert torch.equal(ours['fc.bias'], bias[0])
    assert torch.equal(convert.to_lucid(ours)['fc.bias'], bias)
