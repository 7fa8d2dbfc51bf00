"""A lease: keeps other processes out of a folder in an object store, which has no locks.

It is an object that its holder renews. Who finds one watches it: if it is renewed, its holder is running; if it is not for EXPIRY
seconds, its holder has died, and the lease is taken over. So no clocks are compared. A holder that was stopped for so long, or
a second one where a store cannot create an object exclusively, finds at its next renewal that it has lost the lease.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid

from ..errors import DataError
from . import remote

RENEWAL, EXPIRY, POLL = 10.0, 45.0, 1.0  # seconds
log = logging.getLogger("gpudarknet")


class HeldError(Exception):
    """A lease is held by another process; the text says by which."""


class Lease:
    """Is held from `acquire` to `release`, and renewed by a thread. address: of the object."""

    def __init__(self, address: str):
        self.address = address
        self.holder = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self.id, self.renewals = uuid.uuid4().hex, 0
        self.loss: str | None = None  # why it was lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Get the lease. Raises HeldError if another process has it, DataError if the object cannot be written."""
        while not remote.create(self.address, self._content()):
            if self._is_expired():
                remote.write_bytes(self.address, self._content())
                break
        self._thread.start()

    def release(self) -> None:
        """End the lease, unless it has been lost. If it cannot be removed, it expires."""
        self._stopped.set()
        self._thread.join()
        try:
            if self._is_own(remote.read_bytes(self.address)):
                remote.remove(self.address)
        except DataError as e:
            log.warning("%s; the lease expires in %.0f s", e, EXPIRY)

    def _content(self) -> bytes:
        return json.dumps({"holder": self.holder, "id": self.id, "renewals": self.renewals}).encode()

    def _is_own(self, content: bytes) -> bool:
        return self.id.encode() in content

    def _is_expired(self) -> bool:
        """Watch another's object until it is gone (False) or not renewed for EXPIRY seconds (True). Raises HeldError if it is."""
        first = None
        try:
            for _ in range(int(EXPIRY / POLL) + 1):  # not by the clock: this process may have been stopped meanwhile
                content = remote.read_bytes(self.address)
                if first is None:
                    first = content
                    log.warning(
                        "%s: is held by %s; waiting up to %.0f s to see whether that is running",
                        remote.shown(self.address), holder(content), EXPIRY,
                    )  # fmt: skip
                elif content != first:
                    raise HeldError(f"{holder(content)}, renewed in the last {POLL:g} s")
                time.sleep(POLL)
        except remote.NotFoundError:
            return False
        return True

    def _keep(self) -> None:
        """Renew the lease until it is released or lost."""
        renewed = time.monotonic()
        while not self._stopped.wait(RENEWAL):
            try:
                content = remote.read_bytes(self.address)
                if not self._is_own(content):
                    self.loss = f"was taken over by {holder(content)}"
                    return
                self.renewals += 1
                remote.write_bytes(self.address, self._content())
                renewed = time.monotonic()
            except remote.NotFoundError:
                self.loss = "was removed"
                return
            except DataError as e:
                if time.monotonic() - renewed > EXPIRY:
                    self.loss = f"cannot be renewed ({e})"
                    return


def holder(content: bytes) -> str:
    """Return who holds a lease."""
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, TypeError, KeyError):
        return "another process"
