"""Storages and tensors that a PyTorch pickle describes, checked against each other without building them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .stream import MOST_TENSORS, Refusal, count_bytes, quote

NOT_RUN = 'Nothing of it was executed. Ask its publisher for safetensors, or for a plain state dict.'

_LARGEST_STRIDE = 1 << 48
_LARGEST_KEY = 1 << 60

_STORAGE_DTYPES = {
    'torch DoubleStorage': torch.float64,
    'torch FloatStorage': torch.float32,
    'torch HalfStorage': torch.float16,
    'torch BFloat16Storage': torch.bfloat16,
    'torch LongStorage': torch.int64,
    'torch IntStorage': torch.int32,
    'torch ByteStorage': torch.uint8,
    'torch BoolStorage': torch.bool,
}
_FUNCTIONS = {
    'collections OrderedDict',
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_tensor',
    'torch._utils _rebuild_parameter',
}


class Global(NamedTuple):
    """A name that the pickle takes from a module, as '<module> <name>'."""

    name: str


class Storage(NamedTuple):
    """Numbers that tensors share."""

    dtype: torch.dtype
    length: int

    @property
    def size(self) -> int:
        return self.length * self.dtype.itemsize


class Described:
    """Stands for a tensor or a parameter."""


class Ordered(dict):
    """Stands for an OrderedDict."""


@dataclass
class Contents:
    """What the pickles of one file describe, gathered as they are followed.

    Attributes:
        storages: By key.
        tensors: How many tensors there are.
        tensor_bytes: What they would take if none shared a storage.
    """

    storages: dict[str, Storage] = field(default_factory=dict)
    tensors: int = 0
    tensor_bytes: int = 0

    def storage(self, identifier: Any) -> Storage:
        """Enter a storage: ('storage', type, key, device, length[, None])."""
        whole = exactly(tuple, identifier)[5:] in ((), (None,))
        if identifier[:1] != ('storage',) or not whole:
            raise Refusal('its pickle refers to something that is not a whole storage', NOT_RUN)
        storage_type, key, _, length = identifier[1:5]
        dtype = _STORAGE_DTYPES[exactly(Global, storage_type).name]
        count_bytes(dtype, [length], f'storage {quote(exactly(str, key))}')
        storage = Storage(dtype, length)
        if self.storages.setdefault(key, storage) != storage:
            raise Refusal(f'storage {quote(key)} is described in two ways')
        return storage

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Ordered | Described:
        """What one of the four functions would return."""
        match exactly(Global, function).name:
            case 'collections OrderedDict':
                ordered = Ordered()
                for pair in exactly(list, arguments[0]) if arguments else []:
                    fill(ordered, pair)
                return ordered
            case 'torch._utils _rebuild_tensor_v2':
                *tensor, requires_grad, hooks = arguments
                exactly(bool, requires_grad)
                exactly(Ordered, hooks)
                return self._tensor(*tensor)
            case 'torch._utils _rebuild_tensor':
                return self._tensor(*arguments)
            case 'torch._utils _rebuild_parameter':
                parameter, requires_grad, hooks = arguments
                exactly(bool, requires_grad)
                exactly(Ordered, hooks)
                return exactly(Described, parameter)
            case name:
                raise Refusal(f'its pickle calls {name}, which is no function', NOT_RUN)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Described:
        name = f'tensor {self.tensors}'
        size = count_bytes(exactly(Storage, storage).dtype, exactly(tuple, shape), name)
        positions = (offset, *exactly(tuple, strides))
        if len(strides) != len(shape) or not all(type(p) is int and 0 <= p <= _LARGEST_STRIDE for p in positions):
            raise Refusal(f'{name} has impossible strides')
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if size > storage.size or (size and last >= storage.length):
            raise Refusal(f'{name} reaches beyond its storage of {storage.length} elements')
        self.tensors += 1
        self.tensor_bytes += size
        if self.tensors > MOST_TENSORS:
            raise Refusal(f'it holds more than {MOST_TENSORS} tensors')
        return Described()


def named(name: str) -> Global:
    """A name that state dicts need.

    Raises:
        Refusal: If it is any other.
    """
    if name not in _FUNCTIONS and name not in _STORAGE_DTYPES:
        dotted = quote(name.replace(' ', '.', 1))
        raise Refusal(f'its pickle names {dotted}, which no state dict needs and which could run code', NOT_RUN)
    return Global(name)


def exactly(kind: type, value: Any) -> Any:
    """The value, if it is of this very type.

    Raises:
        TypeError: If not.
    """
    if type(value) is not kind:
        raise TypeError(f'{type(value).__name__} in place of {kind.__name__}')
    return value


def fill(mapping: Any, items: list[Any] | tuple[Any, ...]) -> None:
    """Enter keys and values that take turns; keys are strings or integers that hash to themselves.

    Others could take forever to hash, or all hash alike.
    """
    if type(mapping) not in (dict, Ordered):
        raise TypeError(f'{type(mapping).__name__} in place of dict')
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and (type(key) is not int or abs(key) > _LARGEST_KEY):
            raise Refusal(f'its pickle has {"a huge" if type(key) is int else "a"} {type(key).__name__} as a key')
        mapping[key] = value
