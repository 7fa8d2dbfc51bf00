"""Signals that stop a training: Ctrl-C, SIGTERM, SIGHUP. The iteration ends and is saved; a validation is abandoned."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
REPEAT_SECONDS = 1.0  # a second Ctrl-C within this time is the first one, sent to a process and by its parent


class Abandoned(BaseException):
    """Ends a validation from within a signal handler; not an Exception, so that no validation handles it."""


@contextmanager
def handled(names: Sequence[str], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals while the block runs, except those that are ignored, as by nohup.

    Outside the main thread, Python has no signals.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler of another language
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """Defers the first of these signals while the block of `deferred` runs.

    Further ones have no effect, since often a process and its group get the same signal, but a second Ctrl-C is not deferred.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._abandons = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals; at the end of the block raise what the received one stands for, unless the block raises."""
        with handled(SIGNALS, self._handle):
            yield
        if self.received is not None:
            stop(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._time = number, time.monotonic()
            if self._abandons:
                raise Abandoned
        elif number == signal.SIGINT and time.monotonic() - self._time > REPEAT_SECONDS:
            stop(number)

    def abandonable(self, function: Callable[[], T]) -> T | None:
        """Return what a function returns, or None if a signal arrives before or while it runs."""
        with suppress(Abandoned):
            try:
                self._abandons = True
                return function() if self.received is None else None
            finally:
                self._abandons = False
        return None


def stop(number: int, frame: FrameType | None = None) -> None:
    """Raise KeyboardInterrupt for Ctrl-C, for other signals SystemExit with a shell's exit code."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
