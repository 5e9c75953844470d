"""Every format is read exactly, under any file name."""

import io
import math
import pickle
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from checkpoint_files import (
    EXPECTED,
    SAMPLES,
    STATE_DICT,
    archive_of,
    caffe_blob,
    caffe_bytes,
    detect_format,
    field,
    mindspore_value,
    mxnet_array,
    mxnet_bytes,
    tensor_pickle,
    torch_bytes,
    valid_files,
    zip_bytes,
)
from safetensors.torch import save_file
from timm.utils import CheckpointSaver

from timm_sk.errors import UnreadableCheckpointError
from timm_sk.pretrained.readers import read_checkpoint, read_contents, read_training_checkpoint
from timm_sk.pretrained.readers.stream import FormatError, Stream

KEYS = ('conv1.weight', 'bn1.gamma', 'bn1.beta', 'fc.weight')
CAFFE_KEYS = ('conv1:0', 'conv1/bn:0', 'conv1/bn:1', 'classifier:0')


def written(tmp_path, content, name='file'):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def assert_same(read, expected):
    assert list(read) == list(expected)
    for key, tensor in expected.items():
        assert type(read[key]) is torch.Tensor, key
        assert read[key].dtype == tensor.dtype, key
        assert read[key].shape == tensor.shape, key
        assert read[key].is_contiguous(), key
        assert not read[key].requires_grad, key
        assert torch.equal(read[key], tensor), key


@pytest.mark.all_cases
@pytest.mark.parametrize(
    'name', ['gluon.params', 'module.params', 'mindspore.ckpt', 'paddle2.pdparams', 'paddle4.pdparams']
)
def test_samples_of_mxnet_mindspore_and_paddle(name):
    step = {} if name.endswith('.params') else {'step': torch.tensor([3], dtype=torch.int32)}
    assert_same(read_checkpoint(SAMPLES / name), {**{key: EXPECTED[key] for key in KEYS}, **step})


@pytest.mark.parametrize('protocol', [2, 3, 4])
@pytest.mark.parametrize('dtype', ['f8', 'f4', 'f2', 'i8', 'i4', 'u1', 'b1'])
def test_numpy_types(tmp_path, dtype, protocol):
    arrays = {'a': np.arange(6).reshape(1, 2, 3).astype(dtype), 'scalar': np.array(1, dtype)}
    content = pickle.dumps(arrays, protocol)
    for spelling in (content, content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')):
        if protocol == 4:  # where lengths of names are written before them
            spelling = content
        assert_same(
            read_checkpoint(written(tmp_path, spelling)),
            {key: torch.from_numpy(array).clone() for key, array in arrays.items()},
        )


@pytest.mark.parametrize('name', ['caffe.caffemodel', 'caffe_legacy_blob_shape.caffemodel'])
def test_caffe_sample(name):
    in_norm = {key: EXPECTED[key].reshape(1, 4, 1, 1) for key in KEYS if key.startswith('bn1')}
    blobs = dict(zip(CAFFE_KEYS, (in_norm.get(key, EXPECTED[key]) for key in KEYS), strict=True))
    arange = torch.arange(5.0)
    expected = {
        **{key: blobs[key] for key in CAFFE_KEYS[:3]},
        'conv1/bn:2': arange[:4].reshape(1, 4, 1, 1),
        'conv1/bn:3': arange[1:].reshape(1, 4, 1, 1),
        'classifier:0': blobs['classifier:0'],
        'classifier:1': arange,
    }
    assert_same(read_checkpoint(SAMPLES / name), expected)


def test_safetensors_sample():
    assert_same(read_checkpoint(SAMPLES / 'expected.safetensors'), {key: EXPECTED[key] for key in sorted(EXPECTED)})


@pytest.mark.parametrize('name', ['net.safetensors', 'net.caffemodel', 'net.params', 'net.zip', 'net.pth.tar', 'net'])
@pytest.mark.parametrize('legacy', [False, True])
def test_torch_under_any_name(tmp_path, legacy, name):
    path = written(tmp_path, torch_bytes(STATE_DICT, legacy=legacy), name)
    assert detect_format(path) == ('torch-legacy' if legacy else 'torch')
    assert_same(read_checkpoint(path), STATE_DICT)


@pytest.mark.parametrize('name', ['net.pth', 'net.ckpt', 'net.zip'])
def test_safetensors_under_any_name(tmp_path, name):
    tensors = {key: tensor.contiguous() for key, tensor in STATE_DICT.items()}
    save_file(tensors, tmp_path / name, metadata=dict(format='pt'))
    assert detect_format(tmp_path / name) == 'safetensors'
    read = read_checkpoint(tmp_path / name)
    assert_same(read, {key: tensors[key] for key in read})
    assert set(read) == set(tensors)


@pytest.mark.parametrize('name', sorted(valid_files()))
def test_detect_format(tmp_path, name):
    content = valid_files()[name]
    path = written(tmp_path, content)
    formats = {'ckpt': 'mindspore', 'params': 'mxnet', 'caffemodel': 'caffe', 'pdparams': 'numpy-pickle'}
    expected = formats.get(name.rpartition('.')[2], name.rpartition('.')[2].split()[0].rstrip(','))
    assert detect_format(path) == expected
    assert read_checkpoint(path)


WRAPPED = {
    'state_dict': lambda sd: {'state_dict': sd},
    'model': lambda sd: {'model': sd},
    'epoch, best_acc and optimizer': lambda sd: {
        'epoch': 99,
        'state_dict': sd,
        'best_acc': torch.tensor(77.5),
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(3)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
    },
    'model, and the name of its architecture': lambda sd: {'arch': 'sk_resnet50', 'model': sd, 'args': None},
    'an architecture named model': lambda sd: {'model': 'sk_resnet50', 'state_dict': sd},
    'twice': lambda sd: {'model': {'state_dict': sd}, 'tuple': (1, 2.5, True, 'x')},
}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('wrapper', WRAPPED)
def test_wrappers_and_prefix(tmp_path, wrapper, legacy, prefix):
    wrapped = WRAPPED[wrapper]({prefix + key: tensor for key, tensor in STATE_DICT.items()})
    assert_same(read_checkpoint(written(tmp_path, torch_bytes(wrapped, legacy=legacy))), STATE_DICT)


def test_prefix_of_some_keys(tmp_path):
    tensors = {'module.a': torch.ones(1), 'b': torch.zeros(1)}
    assert_same(read_checkpoint(written(tmp_path, torch_bytes(tensors))), tensors)


@pytest.mark.parametrize('legacy', [False, True])
def test_tied_weights(tmp_path, legacy):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    net.append(net[2])
    net[0].weight.data = net[0].weight.data.to(memory_format=torch.channels_last)
    state_dict = net.state_dict()  # an OrderedDict with _metadata
    path = written(tmp_path, torch_bytes(state_dict, legacy=legacy))
    assert_same(read_checkpoint(path), state_dict)
    path = written(tmp_path, torch_bytes(dict(net.named_parameters()), legacy=legacy))
    assert_same(read_checkpoint(path), {key: value.detach() for key, value in net.named_parameters()})


@pytest.mark.parametrize('entry', [3, 'text', None, [torch.ones(1)], {'a': torch.ones(1)}])
def test_other_values_are_named(tmp_path, entry):
    path = written(tmp_path, torch_bytes({'fine': torch.ones(2), 'odd.one': entry}))
    with pytest.raises(UnreadableCheckpointError, match=r"dense tensors: 'odd\.one' \(a") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert 'fine' not in str(caught.value)


@pytest.mark.parametrize(
    ('tensor', 'reason'),
    [
        (torch.ones(2, 2).to_sparse(), "names 'torch._utils._rebuild_sparse_tensor'"),
        (torch.ones(2, device='meta'), "names 'torch._utils._rebuild_meta_tensor_no_storage'"),
        (torch.ones(2, dtype=torch.complex64), "names 'torch.ComplexFloatStorage'"),
    ],
)
def test_unsupported_tensors(tmp_path, tensor, reason):
    with pytest.raises(UnreadableCheckpointError, match=reason):
        read_checkpoint(written(tmp_path, torch_bytes({'a': tensor})))


def test_other_values_are_counted(tmp_path):
    path = written(tmp_path, torch_bytes({'state_dict': {f'k{index}': index for index in range(8)}}))
    with pytest.raises(UnreadableCheckpointError, match=r"'k0' \(a int\), .*'k4' \(a int\) and 3 more"):
        read_checkpoint(path)


@pytest.mark.parametrize('value', [[torch.ones(1)], torch.ones(1), {}, {'state_dict': {}}, 3, 'text'])
def test_not_a_state_dict(tmp_path, value):
    with pytest.raises(UnreadableCheckpointError, match='not a state dict'):
        read_checkpoint(written(tmp_path, torch_bytes(value)))


OLD = {
    'strings of Python 2': tensor_pickle().replace(b'X\x01\0\0\0a', b'U\x01a').replace(b'X\x07\0\0\0', b'U\x07'),
    'OrderedDict of Python 2': tensor_pickle()
    .replace(b'}X\x01\0\0\0a', b'ccollections\nOrderedDict\n]](X\x01\0\0\0a', 1)
    .replace(b'Rs.', b'Rea\x85R.'),
    'tensors of PyTorch 0.1': tensor_pickle()
    .replace(b'_rebuild_tensor_v2', b'_rebuild_tensor')
    .replace(b'\x89ccollections\nOrderedDict\n)R', b''),
}


@pytest.mark.parametrize('name', OLD)
def test_old_pickles(tmp_path, name):
    tensor = torch.arange(6.0)
    path = written(tmp_path, archive_of(OLD[name], {'0': numpy_bytes(tensor)}))
    assert_same(read_checkpoint(path), {'a': tensor})


def test_storage_in_an_entry_named_like_a_folder(tmp_path):
    """Zip readers may call the entry `archive/data/` a folder without content."""
    tensor = torch.arange(6.0)
    pickled = tensor_pickle().replace(b'X\x01\0\0\x000', b'X\0\0\0\0')
    path = written(tmp_path, archive_of(pickled, {'': numpy_bytes(tensor)}))
    assert_same(read_checkpoint(path), {'a': tensor})


@pytest.mark.parametrize('legacy', [False, True])
def test_checkpoint_of_timm_train(tmp_path, legacy):
    """As timm's CheckpointSaver writes it: with the state of the optimizer, and the options as a Namespace."""
    model, averaged = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    options = Namespace(model='sknet50', opt_betas=(0.9, 0.99), model_kwargs={'a': [1]}, lr=1e-3, seed=None, amp=True)
    saver = CheckpointSaver(
        model, optimizer, args=options, model_ema=averaged, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver._save(tmp_path / 'last.pth.tar', epoch=1, metric=0.5)
    if legacy:
        content = torch.load(tmp_path / 'last.pth.tar', weights_only=False)
        (tmp_path / 'last.pth.tar').write_bytes(torch_bytes(content, legacy=True))
    assert_same(read_checkpoint(tmp_path / 'last.pth.tar'), model.state_dict())
    read, found = read_training_checkpoint(tmp_path / 'last.pth.tar', use_ema=True)
    assert_same(read, averaged.state_dict())
    assert found == {name: value for name, value in vars(options).items() if name != 'model_kwargs'}
    contents = read_contents(tmp_path / 'last.pth.tar')
    assert (contents['epoch'], contents['arch'], contents['args']) == (1, 'sknet50', options)
    assert torch.equal(contents['optimizer']['state'][0]['exp_avg'], optimizer.state_dict()['state'][0]['exp_avg'])


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(tmp_path, value, dtype):
    tensor = torch.zeros(3, 2, dtype=dtype)
    state = dict(fine=torch.ones(2), odd=tensor, empty=torch.zeros(0), count=torch.tensor(1))
    read_checkpoint(written(tmp_path, torch_bytes(state)))
    tensor[1, 1] = value
    with pytest.raises(UnreadableCheckpointError, match="'odd' has NaN or infinite values"):
        read_checkpoint(written(tmp_path, torch_bytes(state)))


def test_big_endian_archive(tmp_path):
    tensor = torch.arange(6.0)
    entries = {'a/data.pkl': tensor_pickle(), 'a/byteorder': b'big', 'a/data/0': tensor.numpy().byteswap().tobytes()}
    assert_same(read_checkpoint(written(tmp_path, zip_bytes(entries))), {'a': tensor})


def test_file_shrinks():
    file = io.BytesIO(bytes(8))
    stream = Stream(file)
    file.truncate(4)
    with pytest.raises(FormatError, match='the header was cut off while it was read'):
        stream.take(8, 'the header')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('legacy', [False, True])
def test_zip_of_a_checkpoint(tmp_path, legacy, compression):
    zipped = zip_bytes({'a/': b'', 'a/net.pth': torch_bytes(STATE_DICT, legacy=legacy)}, compression=compression)
    path = written(tmp_path, zipped)
    assert detect_format(path) == 'zip'
    assert_same(read_checkpoint(path), STATE_DICT)


def test_paths_in_a_zip(tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    content = (SAMPLES / 'gluon.params').read_bytes()
    for name in ('../escaped.params', '/escaped.params', 'C:\\escaped.params'):
        read = read_checkpoint(written(folder, zip_bytes({name: content})))
        assert_same(read, {key: EXPECTED[key] for key in KEYS})
    nameless = zip_bytes({'net.params': content}).replace(b'net.params', b'\0et.params')  # zipfile reads up to the NUL
    assert list(read_checkpoint(written(folder, nameless))) == list(KEYS)
    assert [path.name for path in tmp_path.rglob('*')] == ['folder', 'file']


@pytest.mark.parametrize('magic', [0xF993FAC8, 0xF993FAC9, 0xF993FACA])
@pytest.mark.parametrize(
    ('flag', 'tensor'),
    [
        (0, torch.tensor([[1.5, -2.0]])),
        (1, torch.tensor([[1.5, -2.0]]).double()),
        (2, torch.tensor([[1.5, -2.0]]).half()),
        (3, torch.tensor([[1, 255]], dtype=torch.uint8)),
        (4, torch.tensor([[1, -2]], dtype=torch.int32)),
        (6, torch.tensor([[1, -2]])),
        (7, torch.tensor([[True, False]])),
        (12, torch.tensor([[1.5, -2.0]]).bfloat16()),
    ],
)
def test_mxnet_types_and_versions(tmp_path, magic, flag, tensor):
    array = mxnet_array((1, 2), tensor.view(torch.uint8).numpy().tobytes(), magic=magic, flag=flag)
    path = written(tmp_path, mxnet_bytes([array], [b'arg:w']))
    assert_same(read_checkpoint(path), {'w': tensor})


def test_mxnet_scalar(tmp_path):
    array = mxnet_array((), bytes(4), magic=0xF993FACA)
    assert_same(read_checkpoint(written(tmp_path, mxnet_bytes([array], [b's']))), {'s': torch.tensor(0.0)})


@pytest.mark.parametrize(
    ('name', 'tensor'),
    [
        (b'Float16', torch.tensor([1.5]).half()),
        (b'BFloat16', torch.tensor([1.5]).bfloat16()),
        (b'Float64', torch.tensor([1.5]).double()),
        (b'Int64', torch.tensor([-7])),
        (b'UInt8', torch.tensor([200], dtype=torch.uint8)),
        (b'Bool', torch.tensor([True])),
    ],
)
def test_mindspore_types(tmp_path, name, tensor):
    raw = tensor.view(torch.uint8).numpy().tobytes()
    path = written(tmp_path, mindspore_value(b'w', (1,), name, raw) + mindspore_value(b's', (0,), name, raw))
    assert_same(read_checkpoint(path), {'w': tensor, 's': tensor[0]})


def test_caffe_doubles(tmp_path):
    doubles = torch.tensor([1.5, -2.0]).double()
    blob = field(7, field(1, 2)) + field(8, doubles.numpy().tobytes())
    assert_same(read_checkpoint(written(tmp_path, caffe_bytes(blob))), {'conv:0': doubles})


def test_caffe_data_in_two_pieces(tmp_path):
    numbers = torch.tensor([1.5, -2.0])
    blob = caffe_blob((2,), numpy_bytes(numbers[:1])) + field(5, numpy_bytes(numbers[1:]))
    assert_same(read_checkpoint(written(tmp_path, caffe_bytes(blob))), {'conv:0': numbers})


def numpy_bytes(tensor):
    return tensor.numpy().tobytes()


def test_bool_bytes(tmp_path):
    path = written(tmp_path, mxnet_bytes([mxnet_array((3,), b'\x02\x00\xff', flag=7)], [b'b']))
    assert read_checkpoint(path)['b'].view(torch.uint8).tolist() == [1, 0, 1]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / 'nothing')
    with pytest.raises(UnreadableCheckpointError, match='not a regular file'):
        read_checkpoint(tmp_path)
