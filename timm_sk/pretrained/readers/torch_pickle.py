"""Unpickle what PyTorch saved, without running code and without believing the file's numbers.

Python's `pickle` runs whatever a file names. `torch.load(weights_only=True)` does not, but it trusts the numbers: a
tensor that exceeds its storage gets a larger storage, `bytearray(10**12)` is granted, and hashing nested tuples can
take forever. This unpickler has only the instructions and names that state dicts, optimizers and the
settings of a training script need.
"""

import pickle
import pickletools
import struct
from argparse import Namespace
from collections import OrderedDict
from typing import IO, Any, cast

from .stream import FormatError, Stream, quote
from .torch_tensors import NAMED_DTYPES, NOT_EXECUTED, STORAGE_DTYPES, TensorTable, exactly

_MAX_INSTRUCTIONS = 500_000  # resnest269e with AdamW's state needs 203,799
_LARGEST_KEY = 1 << 60
_BROKEN = (LookupError, ValueError, TypeError, AttributeError, EOFError, struct.error, pickle.UnpicklingError)

_PythonUnpickler: Any = pickle._Unpickler  # not the one in C, whose methods cannot be replaced

INSTRUCTIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD),
    *(pickle.BINPERSID,),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
)


class TensorUnpickler(_PythonUnpickler):
    """The standard library's unpickler, with the allowed instructions only. Nothing but a list can be appended to.

    Args:
        stream: Positioned at the pickle's first byte; after `load`, at the byte behind its last.
        table: Collects the storages and tensors, and fills the tensors, which are empty, later.
    """

    instructions: tuple[bytes, ...] = INSTRUCTIONS

    def __init__(self, stream: Stream, table: TensorTable) -> None:
        super().__init__(cast(IO[bytes], stream), encoding='utf-8')  # the encoding of Python 2's strings
        names = {code[0]: _PythonUnpickler.dispatch[code[0]].__name__ for code in self.instructions}
        self.dispatch = _Dispatch({code: getattr(type(self), name) for code, name in names.items()})
        self.table = table
        self.functions: dict[str, Any] = {
            'argparse.Namespace': Namespace,  # the settings in the checkpoints of timm's train.py
            'collections.OrderedDict': _ordered_dict,
            'torch._utils._rebuild_tensor': table.add_tensor,
            'torch._utils._rebuild_tensor_v2': table.add_tensor_v2,
            'torch._utils._rebuild_parameter': table.parameter,
        }

    def load(self) -> Any:
        try:
            return super().load()
        except FormatError:
            raise
        except _BROKEN as error:
            raise FormatError(f'its pickle is broken ({type(error).__name__}: {error!s:.100})') from error

    def find_class(self, module: str, name: str) -> Any:
        """The function or the storage type that a name stands for."""
        full_name = f'{module}.{name}'
        found = self.functions.get(full_name) or (STORAGE_DTYPES | NAMED_DTYPES).get(full_name)
        if found is None:
            raise FormatError(
                f'its pickle names {quote(full_name)}, which no state dict needs and which could run code', NOT_EXECUTED
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        return self.table.add_storage(pid)

    def load_proto(self) -> None:
        protocol = self.read(1)[0]
        if protocol != 2:
            raise FormatError(f'its pickle has protocol {protocol}; expected 2, which torch.save writes')

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind is not Namespace or exactly(tuple, arguments):
            raise FormatError('its pickle makes an object other than a Namespace', NOT_EXECUTED)
        self.stack.append(Namespace())

    def load_build(self) -> None:
        attributes = exactly(dict, self.stack.pop())
        if type(self.stack[-1]) is Namespace:
            vars(self.stack[-1]).update({exactly(str, name): value for name, value in attributes.items()})
            return
        exactly(OrderedDict, self.stack[-1])
        if attributes.keys() - {'_metadata'}:  # which `state_dict()` adds, and loading does not need
            raise FormatError(f'its pickle sets attributes of a mapping, {quote(list(attributes)[:5])}', NOT_EXECUTED)

    def load_stop(self) -> None:
        if self.metastack or len(self.stack) != 1:
            raise FormatError('its pickle ends before its object is complete')
        super().load_stop()


class _Dispatch(dict):
    """The method of each allowed instruction, by opcode; counts the instructions of one pickle."""

    count = 0

    def __getitem__(self, opcode: int) -> Any:
        self.count += 1
        if self.count > _MAX_INSTRUCTIONS:
            raise FormatError(f'its pickle has more than {_MAX_INSTRUCTIONS} instructions')
        return super().__getitem__(opcode)

    def __missing__(self, opcode: int) -> Any:
        name = next((known.name for known in pickletools.opcodes if known.code == chr(opcode)), 'unknown')
        raise FormatError(
            f'its pickle has the instruction {name} ({opcode:#x}), which no state dict needs', NOT_EXECUTED
        )


def _ordered_dict(*pairs: Any) -> OrderedDict:
    """An empty OrderedDict, or, as Python 2 wrote it, one of a list of pairs."""
    mapping: OrderedDict = OrderedDict()
    for pair in exactly(list, pairs[0]) if pairs else []:
        _set_items(mapping, pair)
    return mapping


def _set_items(mapping: Any, items: list[Any]) -> None:
    """Set alternating keys and values. Keys are strings or small integers.

    Others could take forever to hash, or all have the same hash.
    """
    if type(mapping) not in (dict, OrderedDict):
        raise TypeError(f'{type(mapping).__name__} in place of dict')
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and (type(key) is not int or abs(key) > _LARGEST_KEY):
            raise FormatError(f'its pickle has {"a huge" if type(key) is int else "a"} {type(key).__name__} as a key')
        mapping[key] = value
