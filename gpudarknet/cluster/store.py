"""The folder of a job's results, here or in an object store. A file appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ..errors import DataError
from ..image import is_url
from ..io import lease, lock, remote
from ..io.atomic import create_folder

TMP = ".tmp"  # folder of files that are being written
LOCK = ".lock"


class Store(ABC):
    """A folder of files, which are named by paths relative to it, with /. It can be pickled."""

    name: str  # as given, for messages

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Create the folder and keep other jobs out while the block runs. Raises DataError if one is running there."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, which replaces one of this name in one step. Raises DataError."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what killed workers left. None may be writing."""

    def check(self) -> None:  # noqa: B027 - a lock of the operating system is not lost
        """Raise DataError if another job has taken the folder from this process, which has locked it."""


def open_store(out: str | os.PathLike[str]) -> Store:
    """Return the store at a path or an address, as in `io.remote`. Raises DataError."""
    name = os.fspath(out) if isinstance(out, str | os.PathLike) else None
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"{out!r}: is not the path of a folder; give that of the results")
    if remote.is_remote(name):
        return RemoteStore(name)
    if is_url(name):
        raise DataError(
            f"{name}: is neither a folder nor in an object store; give a path, or an address as s3://bucket/found"
        )
    if not name:
        raise DataError("out: is empty; give the folder of the results")
    return LocalStore(name)


class LocalStore(Store):
    """A folder that all workers see under one path: on this machine, or on a file system that machines share."""

    def __init__(self, name: str):
        self.name, self.path = name, Path(os.path.abspath(os.path.expanduser(name)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; the operating system releases it when this process ends, however it ends."""
        create_folder(self.path, DataError)
        try:
            file = lock.acquire(self.path / LOCK)
        except lock.HeldError as e:
            raise DataError(
                f"{self.name}: another job is writing here ({e}); stop it, or choose another folder"
            ) from None
        except OSError as e:
            raise DataError(f"{self.name}: cannot be written ({e.strerror}); choose another folder") from None
        try:
            self.clean()
            create_folder(self.path / TMP, DataError)
            yield
        finally:
            with suppress(DataError):
                self.clean()
            lock.release(file)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise DataError(f"{self.name}/{name}: cannot be read ({e.strerror}); check its permissions") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside and rename it."""
        target, tmp = self.path / name, self.path / TMP / uuid.uuid4().hex
        try:
            with open(tmp, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if "/" in name:
                target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(tmp, target)
            sync_folder(target.parent)
        except OSError as e:
            with suppress(OSError):
                tmp.unlink()
            raise DataError(
                f"{self.name}/{name}: cannot be written ({e.strerror}); check the folder and the disk"
            ) from None

    def clean(self) -> None:
        """Remove the folder of files that were being written."""
        try:
            shutil.rmtree(self.path / TMP)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise DataError(f"{self.name}/{TMP}: cannot be removed ({e.strerror}); remove it") from None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a loss of power, where the system can."""
    with suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RemoteStore(Store):
    """A folder in an object store, or on a server that fsspec reaches.

    Object stores write a file in one step. On servers it is written beside and renamed.
    """

    def __init__(self, name: str):
        self.address, self.name = remote.Address(name), remote.shown(name)
        self._lease: lease.Lease | None = None  # while this process holds the folder

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        """Pickle the address: workers hold no lease."""
        return RemoteStore, (str(self.address),)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lease on the folder; after the death of this process it expires."""
        remote.make_folder(self.address / TMP)
        own = lease.Lease(self.address / LOCK)
        try:
            own.acquire()
        except lease.HeldError as e:
            raise DataError(
                f"{self.name}: another job is writing here ({e}); stop it, or choose another folder"
            ) from None
        self._lease = own
        try:
            self.clean()
            remote.make_folder(self.address / TMP)
            yield
        finally:
            self._lease = None
            with suppress(DataError):
                self.clean()
            own.release()

    def check(self) -> None:
        """Raise DataError if another job has taken the folder from this process, which has locked it."""
        if self._lease and self._lease.loss:
            raise DataError(
                f"{self.name}: the lease on this folder {self._lease.loss}; run this job again when no other runs"
            )

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""
        try:
            return remote.read_bytes(self.address / name)
        except remote.NotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self.check()
        target = self.address / name
        if not remote.is_server(target):
            remote.write_bytes(target, data)
            return
        tmp = self.address / TMP / uuid.uuid4().hex
        remote.make_folder(target.parent)
        remote.write_bytes(tmp, data)
        remote.move(tmp, target)

    def clean(self) -> None:
        """Remove the folder of files that were being written."""
        if remote.is_server(self.address):
            remote.remove(self.address / TMP, recursive=True)
