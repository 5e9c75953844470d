"""Ctrl-C and SIGTERM: noticed at once, obeyed between two steps."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ONE_PRESS = 2.0  # seconds; torchrun forwards what the terminal has already sent to all of its processes


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.is_set = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.is_set:
            self.is_set, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _ONE_PRESS:
            raise KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM; a second Ctrl-C interrupts at once."""
    stop = StopRequest()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
