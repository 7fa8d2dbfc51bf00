"""Locks between processes, on files; the operating system releases them when a process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """Hold a lock, the file `path`, while the block runs; wait for another process that holds it. Raises OSError."""
    waiting = False
    while True:
        file = open(path, "ab")  # noqa: SIM115 - open as long as it is locked
        try:
            lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except FileNotFoundError:
            pass  # its owner has removed it in between
        except OSError as e:
            if e.errno not in LOCKED:
                file.close()
                raise
            if not waiting:
                log.info("%s: waiting for another process that holds this lock", path)
            waiting = True
            time.sleep(INTERVAL)
        file.close()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            os.unlink(path)
        file.close()
