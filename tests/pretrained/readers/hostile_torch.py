"""PyTorch files that would run code if their pickles were believed, or lie: name to bytes and reason of refusal."""

import io
import os
import pickle
import struct
import tarfile
import zipfile

import torch
from checkpoint_files import (
    MAGIC_PICKLE,
    PROTOCOL_PICKLE,
    archive_of,
    stream_of,
    tensor_pickle,
    torch_bytes,
    unzipped,
    zip_bytes,
)


class _Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def running(target: str) -> dict[str, tuple[bytes, str]]:
    """Files whose pickles would create the file `target`."""
    payload = _Call(os.mkdir, target)
    evil = pickle.dumps(payload, 2)
    protocol_0 = f'cposix\nmkdir\n(V{target}\ntR.'.encode()
    instance = f'(iposix\nmkdir\nV{target}\n.'.replace('(i', '(V' + target + '\ni', 1).encode()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode='w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            member = tarfile.TarInfo(name)
            member.size = len(evil)
            archive.addfile(member, io.BytesIO(evil))
    unknown = 'its format is unknown'
    names = "names 'posix.mkdir', which no state dict needs"
    in_dict = pickle.dumps({'a': payload}, 2)
    attributes = b'\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemscposix\nmkdir\nsb.'
    return {
        'pickle': (evil, names),
        'pickle of protocol 4': (pickle.dumps(payload, 4), names),
        'pickle of protocol 5': (pickle.dumps(payload, 5), 'protocol 5; supported are 2 to 4'),
        'pickle of protocol 0': (protocol_0, unknown),
        'pickle with INST': (instance, unknown),
        'archive': (archive_of(evil), names),
        'archive, in a dict': (archive_of(in_dict), names),
        'archive, in a wrapper': (archive_of(pickle.dumps({'state_dict': {}, 'optimizer': [payload]}, 2)), names),
        'archive, protocol 4': (archive_of(pickle.dumps(payload, 4)), 'protocol 4'),
        'archive, protocol 4 in disguise': (archive_of(b'\x80\x02' + pickle.dumps(payload, 4)[11:]), 'instruction'),
        'archive, INST': (archive_of(b'\x80\x02' + instance), 'instruction'),
        'archive, OBJ': (archive_of(b'\x80\x02(cposix\nmkdir\nV' + target.encode() + b'\no.'), names),
        'archive, NEWOBJ': (
            archive_of(b'\x80\x02ccollections\nOrderedDict\n)\x81.'),
            'makes an object other than a Namespace',
        ),
        'archive, NEWOBJ of a function': (archive_of(b'\x80\x02cposix\nmkdir\nX\x01\0\0\0x\x85\x81.'), names),
        'archive, attributes': (archive_of(attributes), names),
        'archive, attributes of a mapping': (
            archive_of(attributes.replace(b'cposix\nmkdir\n', b'K\x01')),
            r"sets attributes of a mapping, \['items'\]",
        ),
        'archive, a pickle in bytes': (
            archive_of(pickle.dumps({'a': pickle.dumps(payload, 2)}, 2)),
            "names '_codecs.encode'",
        ),
        'archive, a storage by name': (archive_of(b'\x80\x02(X\x06\0\0\0modulecposix\nmkdir\ntQ.'), names),
        'stream': (stream_of(evil), names),
        'stream, in a dict': (stream_of(in_dict), names),
        'stream, its first pickle': (evil + PROTOCOL_PICKLE + evil, names),
        'stream, its protocol': (MAGIC_PICKLE + evil, names),
        'stream, its system': (MAGIC_PICKLE + PROTOCOL_PICKLE + evil, names),
        'stream, its keys': (MAGIC_PICKLE + PROTOCOL_PICKLE + pickle.dumps({}, 2) * 2 + evil, names),
        'stream, a module': (stream_of(b'\x80\x02(X\x06\0\0\0moduleNNNtQ.'), 'not a whole storage'),
        'tar': (tar.getvalue(), "tar archive, PyTorch's format before 0.1.10"),
        'tar in a zip': (zip_bytes({'net.pth.tar': tar.getvalue()}), "tar archive, PyTorch's format before 0.1.10"),
        'pickle in a zip': (zip_bytes({'net.pth': evil}), names),
        'stream in a zip': (zip_bytes({'net.pth': stream_of(evil)}), names),
        'archive in a zip': (zip_bytes({'net.pth': archive_of(evil)}), names),
        'archive in a zip in a zip': (zip_bytes({'a.zip': zip_bytes({'net.pth': archive_of(evil)})}), 'zip in a zip'),
        'TorchScript': (
            zip_bytes({'a/data.pkl': evil, 'a/constants.pkl': evil, 'a/code/__torch__.py': b'import os'}),
            'TorchScript archive, which holds code',
        ),
    }


def torch_lies() -> dict[str, tuple[bytes, str]]:
    long = b'\x8a\x06' + (10**12).to_bytes(6, 'little')
    six, beyond = {'0': bytes(24)}, 'reaches beyond its storage of 6 elements'
    transposed = torch.ones(128, 128)
    shared = {f'{index}': transposed.t() if index else transposed for index in range(9)}
    looped: dict = {}
    looped['model'] = looped
    genuine = unzipped(torch_bytes({'a': torch.ones(6)}))
    tail = struct.pack('<Q', 6) + bytes(24)
    lied = struct.pack('<Q', 10**12) + bytes(24)
    legacy = tensor_pickle(legacy=True)
    wide = tensor_pickle(length=long, legacy=True)
    minus = b'J\xff\xff\xff\xff'
    eight = b'\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.'
    nested = b'))\x86' + b'q\x00h\x00\x86' * 200
    return {
        'a shape beyond its storage': (archive_of(tensor_pickle(shape=long + b'\x85'), six), beyond),
        'strides beyond their storage': (archive_of(tensor_pickle(strides=b'K\x02\x85'), six), beyond),
        'an expanded tensor': (archive_of(tensor_pickle(shape=long + b'\x85', strides=b'K\x00\x85'), six), beyond),
        'an offset beyond its storage': (archive_of(tensor_pickle(offset=b'K\x01'), six), beyond),
        'a negative offset': (archive_of(tensor_pickle(offset=minus), six), 'impossible strides'),
        'a negative stride': (archive_of(tensor_pickle(strides=minus + b'\x85'), six), 'impossible strides'),
        'a negative shape': (archive_of(tensor_pickle(shape=minus + b'\x85'), six), 'impossible shape'),
        'strides of another rank': (archive_of(tensor_pickle(strides=b'K\x01K\x01\x86'), six), 'impossible strides'),
        'a storage longer than its file': (
            archive_of(tensor_pickle(length=long), six),
            'of 4000000000000 bytes has 24',
        ),
        'a storage shorter than its file': (archive_of(tensor_pickle(), {'0': bytes(48)}), 'of 24 bytes has 48'),
        'a missing storage': (archive_of(tensor_pickle()), 'of 24 bytes is missing'),
        'a storage of no tensor': (archive_of(tensor_pickle(), {**six, '1': bytes(4)}), 'data.1. in it belongs'),
        'an unknown byte order': (zip_bytes({**genuine, 'archive/byteorder': b'middle'}), "byte order is b'middle'"),
        'settings whose names are numbers': (
            archive_of(b'\x80\x02cargparse\nNamespace\n)\x81}K\x01K\x01sb.'),
            'int in place of str',
        ),
        'settings with arguments': (
            archive_of(b'\x80\x02cargparse\nNamespace\nK\x01\x85\x81.'),
            'other than a Namespace',
        ),
        'an argument of settings that is a tensor': (
            archive_of(tensor_pickle()[:-1] + b'0cargparse\nNamespace\nh\x00\x81.', six),
            'instruction POP|broken',
        ),
        'a tensor in place of a storage': (
            archive_of(b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89ccollections\nOrderedDict\n)RtR.'),
            'int in place of Storage',
        ),
        'a bytearray of a terabyte': (
            archive_of(b'\x80\x02cbuiltins\nbytearray\n' + long + b'\x85R.'),
            "names 'builtins.bytearray'",
        ),
        'a key that takes forever to hash': (archive_of(b'\x80\x02}' + nested + b'K\x01s.'), 'a tuple as a key'),
        'a key of 2**61 - 1': (
            archive_of(b'\x80\x02}\x8a\x08' + ((1 << 61) - 1).to_bytes(8, 'little') + b'K\x01s.'),
            'a huge int as a key',
        ),
        'a storage key that takes forever to print': (
            archive_of(b'\x80\x02' + nested + b'q\x01(X\x07\0\0\0storagectorch\nFloatStorage\nh\x01NK\x01tQ.'),
            'tuple in place of str',
        ),
        'a list of storages that takes forever to print': (
            MAGIC_PICKLE + PROTOCOL_PICKLE + pickle.dumps({}, 2) * 2 + b'\x80\x02]' + nested + b'a.',
            'list of storages',
        ),
        'a million lists': (archive_of(b'\x80\x02(' + b']' * 1_000_000 + b't.'), 'more than 500000 instructions'),
        'a million lists in a stream': (stream_of(b'\x80\x02(' + b']' * 1_000_000 + b't.'), 'more than 500000 instr'),
        'many copies of one storage': (torch_bytes(shared), 'more than 4 times'),
        'a wrapper in itself': (torch_bytes(looped), 'not a state dict|other things than dense tensors'),
        'a pickle that takes from an empty stack': (archive_of(b'\x80\x02.'), 'before its object is complete'),
        'a tuple of nothing': (archive_of(b'\x80\x02\x86.'), 'broken .IndexError'),
        'a pickle without an end': (archive_of(b'\x80\x02}'), 'broken .EOFError'),
        'a text of 4 GiB': (archive_of(b'\x80\x02X\xff\xff\xff\xffabc.'), 'broken .EOFError'),
        'a text of 8 EiB': (archive_of(eight), 'instruction BINUNICODE8'),
        'a text of 8 EiB in a stream': (stream_of(eight), 'instruction BINUNICODE8'),
        'a memo that is not there': (archive_of(b'\x80\x02h\x07.'), 'broken .UnpicklingError'),
        'data behind the pickle': (archive_of(tensor_pickle() + b'more', six), '4 bytes follow its pickle'),
        'an archive with a file beside its folder': (
            zip_bytes({**genuine, 'elsewhere': b''}),
            "'elsewhere' is not in the folder",
        ),
        'a compressed archive': (zip_bytes(genuine, compression=zipfile.ZIP_DEFLATED), 'is compressed'),
        'a stream of another protocol': (MAGIC_PICKLE + pickle.dumps(1002, 2), 'does not have protocol 1001'),
        'a stream cut off': (stream_of(legacy, ['0'], tail[:-1]), 'should have 24 bytes, where 23 are left'),
        'a stream with more behind it': (stream_of(legacy, ['0'], tail + b'x'), '1 bytes follow its last storage'),
        'a stream without its storage': (stream_of(legacy), 'list of storages'),
        'a stream with its storage twice': (stream_of(legacy, ['0', '0'], tail * 2), 'list of storages'),
        'a stream with a storage of two lengths': (
            stream_of(legacy, ['0'], lied),
            'has length 1000000000000; its pickle says 6',
        ),
        'a stream with a storage of a terabyte': (stream_of(wide, ['0'], lied), 'should have 4000000000000 bytes'),
        'a stream with part of a storage': (
            stream_of(legacy.replace(b'NtQ', b'(X\x01\0\0\x001K\x00K\x06ttQ'), ['0'], tail),
            'not a whole storage',
        ),
        'a tensor that is set by key': (
            archive_of(tensor_pickle()[:-2] + b'K\x00K\x01s.', six),
            'Tensor in place of dict',
        ),
        'a mapping that is appended to': (archive_of(b'\x80\x02}K\x01a.'), 'broken .AttributeError'),
        'attributes of a tensor': (archive_of(tensor_pickle()[:-2] + b'}b.', six), 'Tensor in place of OrderedDict'),
        'a storage type that is called': (archive_of(b'\x80\x02ctorch\nFloatStorage\n)R.'), 'broken .TypeError'),
        'only the magic number': (MAGIC_PICKLE, 'broken'),
    }
