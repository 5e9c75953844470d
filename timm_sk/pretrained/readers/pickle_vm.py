"""What a PyTorch pickle would build, found out without building it.

`torch.load(weights_only=True)` runs no code of a file, but it believes its numbers: a tensor that exceeds its storage
gets a larger storage, `bytearray(10**12)` is granted, and hashing nested tuples can take forever. So the pickle is
followed first by a machine that knows only what state dicts and optimizers consist of, and cannot call anything.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

from .pickle_contents import NOT_RUN, Contents, Ordered, exactly, fill, named
from .stream import Refusal, Stream, quote

_MOST_INSTRUCTIONS = 500_000  # resnest269e with the state of AdamW needs 203,799

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def follow(stream: Stream, contents: Contents) -> Any:
    """Follow one pickle to its end.

    Args:
        stream: Positioned at its first byte; afterwards, behind its last.
        contents: Where storages and tensors are entered.

    Returns:
        Its object: containers, strings and numbers as they are, stand-ins for tensors.

    Raises:
        Refusal: If the pickle names anything but tensors and containers, or is broken, or its numbers do not agree.
    """
    machine = _Machine(contents)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            if count == _MOST_INSTRUCTIONS:
                raise Refusal(f'its pickle has more than {_MOST_INSTRUCTIONS} instructions')
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except Refusal:
        raise
    except (LookupError, ValueError, TypeError) as error:
        raise Refusal(f'its pickle is broken ({type(error).__name__}: {error!s:.100})') from error


class _Machine:
    """The instructions of protocol 2 that `weights_only` knows, with the same effect on stack and memo."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks before each open mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction, as `pickletools` names it."""
        stack = self.stack
        match name:
            case 'PROTO':
                if argument != 2:
                    raise Refusal(f'its pickle is of protocol {argument}; only 2, which torch.save writes, is read')
            case 'BININT' | 'BININT1' | 'BININT2' | 'LONG1' | 'BINFLOAT' | 'BINUNICODE':
                stack.append(argument)
            case 'SHORT_BINSTRING':  # written by Python 2
                stack.append(argument.encode('latin-1').decode())
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                stack.append(_CONSTANTS[name])
            case 'EMPTY_DICT' | 'EMPTY_LIST' | 'EMPTY_TUPLE':
                stack.append(_EMPTY[name]())
            case 'MARK':
                self.outer.append(stack)
                self.stack = []
            case 'TUPLE':
                self._since_mark(lambda items: self.stack.append(tuple(items)))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                length = _TUPLES[name]
                if len(stack) < length:
                    raise IndexError('the stack is empty')
                stack[-length:] = [tuple(stack[-length:])]
            case 'BINPUT' | 'LONG_BINPUT':
                self.memo[argument] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(self.memo[argument])
            case 'APPEND':
                item = stack.pop()
                exactly(list, stack[-1]).append(item)
            case 'APPENDS':
                self._since_mark(lambda items: exactly(list, self.stack[-1]).extend(items))
            case 'SETITEM':
                value, key = stack.pop(), stack.pop()
                fill(stack[-1], (key, value))
            case 'SETITEMS':
                self._since_mark(lambda items: fill(self.stack[-1], items))
            case 'GLOBAL':
                stack.append(named(argument))
            case 'REDUCE':
                arguments = exactly(tuple, stack.pop())
                stack[-1] = self.contents.call(stack[-1], arguments)
            case 'BUILD':
                attributes = exactly(dict, stack.pop())
                exactly(Ordered, stack[-1])
                if attributes.keys() - {'_metadata'}:
                    raise Refusal(f'its pickle sets attributes of a mapping, {quote(list(attributes)[:5])}', NOT_RUN)
            case 'BINPERSID':
                stack[-1] = self.contents.storage(stack[-1])
            case 'STOP':
                if self.outer or len(stack) != 1:
                    raise Refusal('its pickle ends before its object is complete')
            case _:
                raise Refusal(f'its pickle has the instruction {name}, which no state dict needs', NOT_RUN)

    def _since_mark(self, use: Callable[[list[Any]], object]) -> None:
        items, self.stack = self.stack, self.outer.pop()
        use(items)
