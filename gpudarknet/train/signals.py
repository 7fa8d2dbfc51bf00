"""Signals that stop a training: Ctrl-C, SIGTERM, SIGHUP. The iteration ends and is saved; a validation is abandoned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Abandoned(BaseException):
    """Ends a validation from within a signal handler; not an Exception, so that no validation handles it."""


class StopSignals:
    """Defers the first of these signals while the `with` block runs; signals that are ignored, as by nohup, stay ignored.

    A second one is not deferred. Outside the main thread, Python has no signals.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._abandons = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            stop(number)
        self.received = number
        if self._abandons:
            raise Abandoned

    def abandonable(self, function: Callable[[], T]) -> T | None:
        """Return what a function returns, or None if a signal arrives before or while it runs."""
        with suppress(Abandoned):
            try:
                self._abandons = True
                return function() if self.received is None else None
            finally:
                self._abandons = False
        return None

    def check(self) -> None:
        """Raise what the received signal stands for, if there was one."""
        if self.received is not None:
            stop(self.received)


def stop(number: int) -> None:
    """Raise KeyboardInterrupt for Ctrl-C, for other signals SystemExit with a shell's exit code."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
