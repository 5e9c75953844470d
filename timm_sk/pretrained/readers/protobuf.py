"""The protobuf wire format: the fields of a message, up to a number, because two bytes can be one field."""

from collections import defaultdict

from .stream import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_LENGTHS = {FIXED64: 8, FIXED32: 4}
_MAX_FIELDS = 200_000
_MAX_SHAPE_BYTES = 256


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise FormatError('it has a protobuf number that does not end')


class Wire:
    """Walks the messages of one file, up to a number of fields."""

    def __init__(self) -> None:
        self._walked = 0

    def fields(self, message: memoryview) -> dict[tuple[int, int], list[memoryview]]:
        """The values of a message's fields in order, by field number and wire type; none for those that it lacks."""
        values: dict[tuple[int, int], list[memoryview]] = defaultdict(list)
        position = 0
        while position < len(message):
            self._walked += 1
            if self._walked > _MAX_FIELDS:
                raise FormatError(f'it has more than {_MAX_FIELDS} protobuf fields')
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
                raise FormatError(f'its protobuf field {number} has wire type {wire_type}, which these formats lack')
            if not number or end > len(message):
                raise FormatError(
                    f'its protobuf field {number} has {end - position} bytes of {len(message) - position}'
                )
            values[number, wire_type].append(message[position:end])
            position = end
        return values


def check_shape_size(size: int, what: str) -> None:
    """Refuse a shape of many bytes, each of which could become an object in memory."""
    if size > _MAX_SHAPE_BYTES:
        raise FormatError(f'the shape of {what} takes {size} bytes')


def integers(values: list[memoryview]) -> list[int]:
    """The signed integers of a repeated field, packed or not."""
    found = []
    for value in values:
        position = 0
        while position < len(value):
            number, position = varint(value, position)
            found.append(number - (1 << 64) if number >> 63 else number)  # two's complement
    return found


def single(values: list[memoryview]) -> memoryview:
    """The value of a field that is not repeated; empty if the message lacks the field."""
    if len(values) > 1:
        raise FormatError('it has a protobuf field twice that is not repeated')
    return values[0] if values else memoryview(b'')
