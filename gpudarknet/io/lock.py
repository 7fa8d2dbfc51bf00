"""Locks between processes, on files; the operating system releases them when a process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
