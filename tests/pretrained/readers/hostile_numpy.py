"""Pickles of NumPy arrays that lie, or name anything else: name to bytes and reason of refusal."""

import pickle

import numpy as np

_HUGE = b'\x8a\x06' + (10**12).to_bytes(6, 'little')
_DOUBLING = b'))\x86' + b'q\x00h\x00\x86' * 200  # a tuple that takes forever to print or to hash
_RECONSTRUCT = b'cnumpy.core.multiarray\n_reconstruct\n'
_NDARRAY, _DTYPE, _ENCODE = b'cnumpy\nndarray\n', b'cnumpy\ndtype\n', b'c_codecs\nencode\n'


_LATIN1 = b'X\x06\0\0\0latin1\x86R'
_EMPTY = b'K\0\x85' + _ENCODE + b'X\x01\0\0\0b' + _LATIN1 + b'\x87R'  # rest of the call: shape and code


def _in_dict(value: bytes) -> bytes:
    return b'\x80\x02}X\x01\0\0\0a' + value + b's.'


def _array(
    *,
    kind: bytes = _NDARRAY,
    shape: bytes = b'K\x03\x85',
    dtype: bytes = b'X\x02\0\0\0f4',
    order: bytes = b'X\x01\0\0\0<',
    raw: bytes = _ENCODE + b'X\x0c\0\0\0' + bytes(12) + _LATIN1,
) -> bytes:
    """The instructions for an array of three numbers, in which parts may be replaced."""
    number_type = _DTYPE + dtype + b'\x89\x88\x87R(K\x03' + order + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    return _RECONSTRUCT + kind + _EMPTY + b'(K\x01' + shape + number_type + b'\x89' + raw + b'tb'


def numpy_lies() -> dict[str, tuple[bytes, str]]:
    assert pickle.loads(_in_dict(_array()))['a'].tolist() == [0, 0, 0]
    megabyte = _ENCODE + b'X\0\0\x10\0' + bytes(1 << 20) + _LATIN1
    again = megabyte + b'q\x01' + b'0'
    shared = b''.join(b'X\x01\0\0\0' + bytes([97 + n]) + _array(shape=b'J\0\0\4\0\x85', raw=b'h\x01') for n in range(9))
    return {
        'numpy, a shape beyond its bytes': (_in_dict(_array(shape=_HUGE + b'\x85')), 'has 12 bytes'),
        'numpy, a negative shape': (_in_dict(_array(shape=b'J\xff\xff\xff\xff\x85')), 'impossible shape'),
        'numpy, a shape of text': (_in_dict(_array(shape=b'X\x01\0\0\x003\x85')), 'broken .TypeError'),
        'numpy, objects': (pickle.dumps({'a': np.array([{}], object)}, 2), "type 'O8'"),
        'numpy, a type that reserves a terabyte': (_in_dict(_array(dtype=b'X\x05\0\0\0V1e12')), "type 'V1e12'"),
        'numpy, another type': (pickle.dumps({'a': np.ones(3, 'c8')}, 4), "type 'c8'"),
        'numpy, big-endian': (pickle.dumps({'a': np.ones(3, '>f4')}, 4), "byte order '>'"),
        "numpy, Fortran's order": (pickle.dumps({'a': np.ones((2, 3), 'f4').T}, 4), "in Fortran's order"),
        'numpy, a scalar': (pickle.dumps({'a': np.float32(1)}, 4), "names 'numpy._core.multiarray.scalar'"),
        'numpy, eval': (_in_dict(b'cbuiltins\neval\nX\x01\0\0\x001\x85R'), "names 'builtins.eval'"),
        'numpy, load': (_in_dict(b'cnumpy\nload\nX\x01\0\0\0x\x85R'), "names 'numpy.load'"),
        'numpy, eval by the stack': (
            b'\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.',
            "names 'builtins.eval'",
        ),
        'numpy, a storage of PyTorch': (
            _in_dict(b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NK\x01tQ'),
            'instruction BINPERSID',
        ),
        'numpy, an array of a tuple': (_in_dict(_array(kind=_DOUBLING)), 'broken .TypeError: tuple in place'),
        'numpy, a tuple as byte order': (_in_dict(_array(order=_DOUBLING)), 'broken .TypeError: tuple in place'),
        'numpy, a tuple as encoding': (_in_dict(_array(raw=_ENCODE + b'X\0\0\0\0' + _DOUBLING + b'\x86R')), 'broken'),
        'numpy, another encoding': (_in_dict(_array(raw=_ENCODE + b'X\0\0\0\0X\x03\0\0\0rot\x86R')), 'encoding rot'),
        'numpy, no bytes': (_in_dict(_array(raw=b'K\x00')), 'broken .TypeError'),
        'numpy, a state without a number': (_in_dict(_RECONSTRUCT + _NDARRAY + _EMPTY + b')b'), 'broken'),
        'numpy, an array without a state': (
            _in_dict(_RECONSTRUCT + _NDARRAY + _EMPTY),
            'other things than dense tensors',
        ),
        'numpy, the state of a dict': (b'\x80\x02}}b.', 'broken .TypeError'),
        'numpy, the state of a tuple': (b'\x80\x02))b.', 'sets the state of a tuple'),
        'numpy, one text encoded many times': (
            b'\x80\x02X\0\0\x10\0' + bytes(1 << 20) + b'q\x01' + (_ENCODE + b'h\x01' + _LATIN1) * 9 + b'.',
            'more than twice the size',
        ),
        'numpy, the same bytes many times': (b'\x80\x02' + again[:-1] + b'\x85}(' + shared + b'u.', 'twice the size'),
        'numpy, a text of 8 EiB': (b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.', 'instruction BINUNICODE8'),
        'numpy, bytes of 8 EiB': (b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.', 'broken'),
        'numpy, a frame of 8 EiB': (b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.', 'not a state dict'),
        'numpy, a list': (pickle.dumps([np.ones(3)], 4), 'not a dict of arrays'),
        'numpy, more behind it': (pickle.dumps({'a': np.ones(3)}, 4) + b'x', '1 bytes follow its pickle'),
        'numpy, too many entries': (pickle.dumps(dict.fromkeys(map(str, range(20_001))), 4), 'more than 20000 tensors'),
    }
