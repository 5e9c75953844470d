"""Files of every format that lie: name to bytes and reason of refusal."""

import struct

from checkpoint_files import (
    GIB,
    caffe_blob,
    caffe_bytes,
    described,
    field,
    mindspore_value,
    mxnet_array,
    mxnet_bytes,
    safetensors_bytes,
)
from hostile_numpy import numpy_lies
from hostile_torch import running, torch_lies
from hostile_zips import zip_lies


def one_tensor(shape: object, begin: int, end: int, dtype: object = 'F32', *, data: int = 4) -> bytes:
    """A safetensors file of tensor 'a' as the header describes it, and of so many bytes of data."""
    return safetensors_bytes({'a': described(shape, begin, end, dtype)}, bytes(data))


def safetensors_lies() -> dict[str, tuple[bytes, str]]:
    one = described([1], 0, 4)
    good, four = {'a': one}, bytes(4)
    twice = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    inner = b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}'
    nested = b'{"a":' + b'[' * 400_000 + b']' * 400_000 + b'}'
    digits = b'{"a":{"dtype":"F32","shape":[' + b'9' * 10_000 + b'],"data_offsets":[0,4]}}'
    long, listed = (b'{"a":' + b'[],' * count + b'[]}' for count in (400_000, 10))
    many = {f'{index}': described([0], 0, 0) for index in range(18_000)}
    overlap = {'a': described([2], 0, 8), 'b': described([2], 4, 12)}
    gap = {'a': one, 'b': described([1], 8, 12)}
    shape, empty = 'impossible shape', dict(dtype='F32', data_offsets=[0, 4])
    return {
        'a header of 1 GB that is not there': (
            safetensors_bytes(good, four, length=GIB),
            'its header should have 1073741824 bytes, where 6. are left',
        ),
        'a header of 2**47 bytes': (safetensors_bytes(good, four, length=1 << 47), 'its header should have'),
        'a header of 2**60 bytes': (safetensors_bytes(good, four, length=1 << 60), 'format is unknown'),
        'a long header': (safetensors_bytes(long), 'its header has 1200008 bytes; the limit'),
        'a long list of tensors': (safetensors_bytes(many), 'its header has 11|its header has 10'),
        'a header cut off': (safetensors_bytes(good, length=9), 'not valid JSON'),
        'offsets that overlap': (safetensors_bytes(overlap, bytes(12)), "'b' overlaps another tensor"),
        'two tensors in one place': (safetensors_bytes({'a': one, 'b': one}, four), "'b' overlaps another tensor"),
        'offsets that leave a gap': (safetensors_bytes(gap, bytes(12)), "'b' leaves a gap of 4 bytes"),
        'a first tensor that leaves a gap': (one_tensor([1], 4, 8, data=8), 'leaves a gap'),
        'offsets beyond the data': (one_tensor([2], 0, 8), "'a' ends at byte 8 .* has 4"),
        'a tensor of a terabyte': (
            one_tensor([1 << 38], 0, 1 << 40),
            "'a' ends at byte 1099511627776 of the data, which has 4",
        ),
        'offsets in reverse': (one_tensor([1], 4, 0), 'span -4 bytes'),
        'a negative offset': (one_tensor([1], -4, 0), 'not two offsets'),
        'an offset of 400 bits': (one_tensor([1], 0, 1 << 400), 'not two offsets'),
        'three offsets': (safetensors_bytes({'a': dict(one, data_offsets=[0, 2, 4])}, four), 'not two offsets'),
        'data of no tensor': (one_tensor([1], 0, 4, data=5), '1 bytes of its data belong to no tensor'),
        'data cut off': (one_tensor([1], 0, 4, data=3), "'a' ends at byte 4 of the data, which has 3"),
        'duplicate keys': (safetensors_bytes(twice, four), "the key 'a' appears twice in its header"),
        'duplicate fields': (safetensors_bytes(inner, four), "the key 'dtype' appears twice in its header"),
        'a shape of other size': (one_tensor([2], 0, 4), 'its shape needs 8'),
        'a shape beyond 64 bits': (one_tensor([1 << 40] * 2, 0, 4), shape),
        'a shape that is empty and huge': (one_tensor([0, 1 << 62, 1 << 62], 0, 0, data=0), shape),
        'a shape of many dimensions': (one_tensor([1] * 1000, 0, 4), shape),
        'a negative shape': (one_tensor([-1, -1], 0, 4), r'impossible shape, \[-1, -1\]'),
        'a shape of booleans': (one_tensor([True], 0, 4), 'not a list of integers'),
        'a shape of fractions': (one_tensor([1.0], 0, 4), 'not a list of integers'),
        'a shape of 10,000 digits': (safetensors_bytes(digits, four), 'not valid JSON'),
        'another type': (one_tensor([1], 0, 4, 'F33'), "has type 'F33'; expected one of F64"),
        'a type that is a list': (one_tensor([1], 0, 4, []), r'has type \[\]'),
        'an entry without a shape': (safetensors_bytes({'a': empty}), 'not described by'),
        'an entry that is a number': (safetensors_bytes({'a': 3}), 'not described by'),
        'metadata that is a list': (safetensors_bytes({'__metadata__': []}), 'its __metadata__ is not a mapping'),
        'a header nested deeply': (safetensors_bytes(nested), 'not valid JSON .RecursionError'),
        'a header that is not JSON': (safetensors_bytes(listed), 'not valid JSON'),
        'a header that is not text': (safetensors_bytes(b'{"\xff"}'), 'not valid UTF-8'),
        'no tensors': (safetensors_bytes({}), 'not a state dict'),
    }


def mxnet_lies() -> dict[str, tuple[bytes, str]]:
    def one(array: bytes, name: bytes = b'a', **counts: int) -> bytes:
        return mxnet_bytes([array], [name], **counts)

    good = mxnet_array()
    return {
        '2**60 arrays': (one(good, count=1 << 60), 'should hold 1152921504606846976 arrays'),
        'more arrays than there are': (one(good, count=3), 'begins with 0x1, not with|should have'),
        '2**60 names': (one(good, named=1 << 60), '1 arrays and 1152921504606846976 names'),
        'arrays without names': (mxnet_bytes([good], []), '1 arrays and 0 names'),
        'a name of 2**60 bytes': (
            one(good)[:-9] + struct.pack('<Q', 1 << 60) + b'a',
            'name 0 should have 1152921504606846976',
        ),
        'a name that is not text': (one(good, b'\xff'), 'name 0 is not valid UTF-8'),
        'two arrays of one name': (mxnet_bytes([good, good], [b'arg:a', b'aux:a']), "the key 'a' appears twice"),
        'an array of a terabyte': (one(mxnet_array((1 << 38,), b'')), 'array 0 should have 1099511627776 bytes'),
        'an array beyond 64 bits': (one(mxnet_array((1 << 40, 1 << 40), b'')), 'impossible shape'),
        'an array of negative size': (one(mxnet_array((-1,), b'')), 'impossible shape'),
        '2**31 dimensions': (one(mxnet_array(dimensions=(1 << 31) - 1)), 'has 2147483647 dimensions'),
        '-1 dimensions': (one(mxnet_array((), b'', dimensions=-1, magic=0xF993FACA)), 'has -1 dimensions'),
        'no array': (one(mxnet_array((), b'', dimensions=0)), 'has 0 dimensions'),
        'a sparse array': (one(mxnet_array(storage=1)), 'storage of kind 1; only dense'),
        'an array of another type': (one(mxnet_array(flag=99)), 'has type 99; expected one of 0, 1'),
        'an array of the oldest version': (one(mxnet_array(magic=1)), 'begins with 0x1, not with'),
        'a list cut off': (one(good)[:-1], 'name 0 should have 1 bytes, where 0 are left'),
        'a list with a tail': (one(good) + b'more', '4 bytes follow its last name'),
        'only the number of a list': (struct.pack('<Q', 0x112), 'the reserved word should have 8 bytes'),
    }


def protobuf_lies() -> dict[str, tuple[bytes, str]]:
    four = bytes(4)
    groups = field(1, b'net') + field(100, field(1, b'conv') + b'\x43' * 100_000)
    layer = field(1, b'')
    for _ in range(2000):
        layer = field(100, field(7, layer))
    empty_layers = field(1, b'net') + field(100, b'') * 1_000_000
    empty_blobs = field(1, b'net') + field(100, field(7, b'') * 1_000_000)
    good, float32, gigabyte = mindspore_value(b'a', (1,), b'Float32', four), b'Float32', '1073741824 bytes of 3'
    sound = caffe_bytes(caffe_blob((1,), four))
    dimensions = bytes(10_000_000)
    return {
        'Caffe, groups nested 100,000 deep': (groups, 'field 8 has wire type 3, which these formats lack'),
        'Caffe, layers nested 2,000 deep': (field(1, b'net') + layer, 'has no shape'),
        'Caffe, a million layers': (empty_layers, 'more than 200000 protobuf fields'),
        'Caffe, a million blobs': (empty_blobs, 'more than 200000 protobuf fields'),
        'Caffe, a layer of 1 GB that is not there': (field(1, b'net') + field(100, b'abc', length=GIB), gigabyte),
        'Caffe, a blob of 1 GB that is not there': (
            field(1, b'net') + field(100, field(7, b'abc', length=GIB)),
            gigabyte,
        ),
        'Caffe, a length of 70 bits': (sound + b'\xa2\x06' + b'\xff' * 10, 'number that does not end'),
        'Caffe, ten million dimensions': (caffe_bytes(field(7, field(1, dimensions))), 'takes 1000000. bytes'),
        'Caffe, a million shapes': (caffe_bytes(field(7, field(1, b'\x01')) * 150), 'takes 450 bytes'),
        'Caffe, a negative shape': (caffe_bytes(caffe_blob((-1,), four)), r'impossible shape, \[-1\]'),
        'Caffe, a shape of a terabyte': (
            caffe_bytes(caffe_blob((1 << 38,), four)),
            'has 4 bytes, where .* needs 1099511627776',
        ),
        'Caffe, a shape beyond 64 bits': (caffe_bytes(caffe_blob((1 << 40, 1 << 40), four)), 'impossible shape'),
        'Caffe, a shape of one more': (
            caffe_bytes(caffe_blob((2,), four)),
            r'has 4 bytes, where \[2\] of torch.float32 needs 8',
        ),
        'Caffe, half a number': (caffe_bytes(caffe_blob((1,), b'abc')), 'has 3 bytes'),
        'Caffe, no shape': (caffe_bytes(field(5, four)), 'blob 0 of layer .conv. has no shape'),
        'Caffe, a name that is not text': (
            caffe_bytes(caffe_blob((1,), four), name=b'\xff'),
            'name of a layer is not valid',
        ),
        'Caffe, two layers of one name': (sound + sound, 'twice'),
        'Caffe, a layer of two names': (
            field(1, b'net') + field(100, field(1, b'a') + field(1, b'b') + field(7, caffe_blob((1,), four))),
            'a protobuf field twice that is not repeated',
        ),
        'Caffe, floats and doubles': (caffe_bytes(caffe_blob((1,), four) + field(8, bytes(8))), 'numbers of two types'),
        'Caffe, cut off': (sound[:-1], 'bytes of'),
        'Caffe, old layers': (field(1, b'net') + field(2, b''), "of the old kind V1. Upgrade it with Caffe's"),
        'Caffe, no blobs': (caffe_bytes(), 'not a state dict'),
        'Caffe, field 0': (caffe_bytes() + b'\x02\x00', 'field 0'),
        'MindSpore, a value of 1 GB that is not there': (good + field(1, b'abc', length=GIB), gigabyte),
        'MindSpore, a million values': (good + field(1, b'') * 1_000_000, 'more than 200000 protobuf fields'),
        'MindSpore, ten million dimensions': (
            good + field(1, field(1, b'b') + field(2, field(1, dimensions))),
            'takes 10000000 bytes',
        ),
        'MindSpore, a million fields': (good + field(1, field(3, 0) * 300_000), 'more than 200000 protobuf fields'),
        'MindSpore, groups': (good + field(1, b'\x0b' * 100_000), 'wire type 3'),
        'MindSpore, a shape of a terabyte': (mindspore_value(b'a', (1 << 38,), float32, four), 'needs 1099511627776'),
        'MindSpore, a negative shape': (mindspore_value(b'a', (-1,), float32, four), 'impossible shape'),
        'MindSpore, another type': (
            mindspore_value(b'a', (1,), b'str', four),
            "has type b'str'; expected one of Float64",
        ),
        'MindSpore, a parameter in two values': (good + good, "the key 'a' appears twice"),
        'MindSpore, numbers twice': (
            field(1, field(1, b'a') + field(2, field(1, 1) + field(2, float32) + field(3, four) * 2)),
            'a protobuf field twice that is not repeated',
        ),
        'MindSpore, another field': (good + field(2, b'x'), 'field 2 of wire type 2 that no MindSpore file has'),
        'MindSpore, a name that is not text': (mindspore_value(b'\xff', (1,), float32, four), 'name of a parameter'),
        'MindSpore, cut off': (good[:-1], 'bytes of'),
    }


def other_files() -> dict[str, tuple[bytes, str]]:
    return {
        'nothing': (b'', 'it is empty'),
        'one byte': (b'\x80', 'format is unknown'),
        'zeros': (bytes(4096), 'format is unknown'),
        'text': (b'These are not the weights you are looking for.', 'format is unknown'),
        'a web page': (b'<!DOCTYPE html><html>', 'a web page'),
        'a pointer of Git LFS': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a pointer of Git LFS'),
        'HDF5': (b'\x89HDF\r\n\x1a\n' + bytes(100), 'an HDF5 file'),
        'gzip': (b'\x1f\x8b\x08' + bytes(100), 'compressed with gzip'),
    }


def hostile_files(target: str) -> dict[str, tuple[bytes, str]]:
    """All of them. `target` is the folder that code in them would make."""
    groups = (
        running(target),
        torch_lies(),
        zip_lies(),
        safetensors_lies(),
        mxnet_lies(),
        protobuf_lies(),
        numpy_lies(),
        other_files(),
    )
    return {name: case for group in groups for name, case in group.items()}
