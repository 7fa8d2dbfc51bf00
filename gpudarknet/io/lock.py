"""Locks between processes, on files; the operating system releases them when a process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCKED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a lock that another process holds raises
log = logging.getLogger("gpudarknet")
INTERVAL = 0.2  # seconds between attempts


def lock(file: IO[Any]) -> None:
    """Lock a file. Raises OSError, one of LOCKED if another file object has locked it."""
    if sys.platform == "win32":
        file.seek(1 << 30)  # a locked byte cannot be read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class HeldError(Exception):
    """A lock is held by another process; the text says by which."""


def acquire(path: Path, unavailable: Callable[[OSError], object] | None = None) -> TextIO:
    """Lock a file, which is created, and write into it who holds the lock; return it for `release`.

    unavailable: called where the file system has no locks; the file is then returned unlocked. Raises HeldError; OSError if the
    file cannot be written or, without `unavailable`, locked.
    """
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as it is locked
        try:
            try:
                lock(file)
            except OSError as e:
                if e.errno in LOCKED or unavailable is None:
                    raise
                unavailable(e)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
                file.flush()
                return file
            file.close()  # its owner has removed it in between
        except OSError as e:
            if e.errno in LOCKED:
                file.seek(0)
                owner = file.read() or "another process"
                file.close()
                raise HeldError(owner) from None
            with suppress(OSError):
                os.unlink(path)
            with suppress(OSError):
                file.close()
            raise


def release(file: TextIO) -> None:
    """Remove a file that `acquire` returned, and its lock."""
    with suppress(OSError):  # Windows keeps a file that is open
        os.unlink(file.name)
    file.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, the file `path`, while the block runs; wait for another process that holds it.

    Where the file system has no locks, none is held. Raises OSError if the file cannot be written.
    """
    with open(path, "ab") as file:
        waiting = False
        while is_locked(file):
            if not waiting:
                log.info("%s: waiting for another process that holds this lock", path)
            waiting = True
            time.sleep(INTERVAL)
        yield


def is_locked(file: IO[Any]) -> bool:
    """Lock a file; return whether another process has locked it."""
    try:
        lock(file)
    except OSError as e:
        return e.errno in LOCKED
    return False
