"""The protobuf wire format: which fields a message has, and messages of a few fields declared in code.

The fields of a file are counted before the protobuf library builds anything of them, because two bytes on the wire
can be an object of a hundred. Bulk numbers are declared as bytes, which on the wire they are.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from .stream import Refusal

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_LENGTHS = {FIXED64: 8, FIXED32: 4}
_MOST_FIELDS = 200_000
_MOST_SHAPE_BYTES = 256


class Field(NamedTuple):
    """One field on the wire: its number, wire type and value's bytes."""

    number: int
    wire_type: int
    value: memoryview


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, and the position behind it.

    Raises:
        Refusal: If the message ends before it.
    """
    number = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise Refusal('it has a protobuf number that does not end')


class Wire:
    """Walks the messages of one file, and refuses to walk forever."""

    def __init__(self) -> None:
        self._walked = 0

    def fields(self, message: memoryview) -> Iterator[Field]:
        """The fields of a message in order.

        Raises:
            Refusal: If a field is no field or longer than its message, or the file has too many of them.
        """
        position = 0
        while position < len(message):
            self._walked += 1
            if self._walked > _MOST_FIELDS:
                raise Refusal(f'it has more than {_MOST_FIELDS} protobuf fields')
            tag, position = varint(message, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == VARINT:
                end = varint(message, position)[1]
            elif wire_type == BYTES:
                length, position = varint(message, position)
                end = position + length
            elif wire_type in _FIXED_LENGTHS:
                end = position + _FIXED_LENGTHS[wire_type]
            else:
                raise Refusal(f'its protobuf field {number} is of wire type {wire_type}, which these formats lack')
            if not number or end > len(message):
                raise Refusal(f'its protobuf field {number} has {end - position} bytes of {len(message) - position}')
            yield Field(number, wire_type, message[position:end])
            position = end

    def check_shape(self, message: memoryview, number: int, what: str) -> None:
        """Refuse a message whose field of dimensions is long: a byte there can be eight in memory."""
        taken = sum(len(field.value) for field in self.fields(message) if field.number == number)
        if taken > _MOST_SHAPE_BYTES:
            raise Refusal(f'the shape of {what} takes {taken} bytes')


def parse(message: Any, raw: memoryview, what: str) -> Any:
    """Let the protobuf library parse one message.

    Raises:
        Refusal: If it cannot.
    """
    from google.protobuf.message import DecodeError

    try:
        return message.FromString(bytes(raw))
    except DecodeError as error:
        raise Refusal(f'{what} is no valid protobuf message ({error!s:.100})') from error


@cache
def declare(package: str, messages: tuple[tuple[str, tuple[tuple[str, int, str], ...]], ...]) -> dict[str, Any]:
    """Message classes by name.

    Args:
        package: Keeps equal names of two formats apart.
        messages: Names with their fields: (name, number, type). A type is 'bytes', 'int32', 'int64' or the name of
            a message, with '*' behind it where the field is repeated.

    Raises:
        Refusal: If protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise Refusal('reading it needs protobuf', "Install it: pip install 'timm_sk[convert]'.") from error
    Proto = descriptor_pb2.FieldDescriptorProto  # noqa: N806  (a class)
    scalars = dict(bytes=Proto.TYPE_BYTES, int32=Proto.TYPE_INT32, int64=Proto.TYPE_INT64)
    file = descriptor_pb2.FileDescriptorProto(name=f'timm_sk/{package}.proto', package=package, syntax='proto2')
    for message, fields in messages:
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            repeated = kind.endswith('*')
            field = described.field.add(
                name=name, number=number, label=Proto.LABEL_REPEATED if repeated else Proto.LABEL_OPTIONAL
            )
            kind = kind.removesuffix('*')
            if kind in scalars:
                field.type = scalars[kind]
            else:
                field.type, field.type_name = Proto.TYPE_MESSAGE, f'.{package}.{kind}'
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'{package}.{name}')) for name, _ in messages
    }
