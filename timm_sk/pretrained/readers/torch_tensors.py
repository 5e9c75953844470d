"""Storages and tensors of a PyTorch file: checked against each other first, then filled with the file's bytes."""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .stream import MAX_TENSORS, FormatError, count_bytes, make_tensor, quote

NOT_EXECUTED = 'Nothing of it was executed. Ask its publisher for safetensors, or for a plain state dict.'

_LARGEST_STRIDE = 1 << 48
_MAX_GROWTH = 4  # bytes of all tensors, counted as if none shared a storage, for each byte of the file

STORAGE_DTYPES = {
    'torch.DoubleStorage': torch.float64,
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
}
# Of optimizers whose settings name a dtype, such as `adafactorbv`.
NAMED_DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class Storage(NamedTuple):
    """Numbers that tensors share, by the key under which the file has them."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.length * self.dtype.itemsize


class _View(NamedTuple):
    """A tensor, empty until it is filled, and its place in a storage."""

    tensor: Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TensorTable:
    """All storages and tensors that the pickles of one file describe."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._views: dict[str, list[_View]] = {}  # by their storage's key
        self._tensors = 0
        self._tensor_bytes = 0

    def add_storage(self, identifier: Any) -> Storage:
        """Add a storage: ('storage', type, key, device, length[, None])."""
        is_whole = exactly(tuple, identifier)[5:] in ((), (None,))
        if identifier[:1] != ('storage',) or not is_whole:
            raise FormatError('its pickle refers to something that is not a whole storage', NOT_EXECUTED)
        dtype, key, _, length = identifier[1:5]
        storage = Storage(exactly(str, key), exactly(torch.dtype, dtype), length)
        count_bytes(storage.dtype, [length], f'storage {quote(key)}')
        self._views.setdefault(key, [])
        if self.storages.setdefault(key, storage) != storage:
            raise FormatError(f'storage {quote(key)} is described in two ways')
        return storage

    def add_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        """Add a view of a storage; returns the tensor, which is still empty."""
        name = f'tensor {self._tensors}'
        size = count_bytes(exactly(Storage, storage).dtype, exactly(tuple, shape), name)
        positions = (offset, *exactly(tuple, strides))
        if len(strides) != len(shape) or not all(type(p) is int and 0 <= p <= _LARGEST_STRIDE for p in positions):
            raise FormatError(f'{name} has impossible strides')
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if size > storage.size or (size and last >= storage.length):
            raise FormatError(f'{name} reaches beyond its storage of {storage.length} elements')
        if self._tensors == MAX_TENSORS:
            raise FormatError(f'it has more than {MAX_TENSORS} tensors')
        self._tensors += 1
        self._tensor_bytes += size
        tensor = torch.empty(0, dtype=storage.dtype)
        self._views[storage.key].append(_View(tensor, offset, shape, strides))
        return tensor

    def add_tensor_v2(
        self, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any
    ) -> Tensor:
        """Add a tensor as PyTorch 0.2 and later describe it; all are read without gradients."""
        return self.parameter(self.add_tensor(storage, offset, shape, strides), requires_grad, hooks)

    def parameter(self, tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
        """The tensor of a parameter."""
        exactly(bool, requires_grad)
        exactly(OrderedDict, hooks)
        return exactly(Tensor, tensor)

    def check_size(self, file_size: int) -> None:
        """Check that the tensors cannot outgrow their file by much, however often they share storages."""
        if self._tensor_bytes > _MAX_GROWTH * file_size:
            raise FormatError(
                f'its tensors would take {self._tensor_bytes} bytes, more than {_MAX_GROWTH} times its {file_size}'
            )

    def fill(self, storage: Storage, content: bytearray) -> None:
        """Give the tensors of a storage its bytes."""
        numbers = make_tensor(content, storage.dtype, [storage.length], f'storage {quote(storage.key)}')
        for view in self._views[storage.key]:
            view.tensor.set_(numbers, view.offset, view.shape, view.strides)  # type: ignore[call-overload]


def exactly(kind: type, value: Any) -> Any:
    """The value, which must have exactly this type."""
    if type(value) is not kind:
        raise TypeError(f'{type(value).__name__} in place of {kind.__name__}')
    return value
