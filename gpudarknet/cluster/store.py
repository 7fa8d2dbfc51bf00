"""The folder of a job's results. A file appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ..errors import DataError
from ..io import lock
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


def open_store(out: str | os.PathLike[str]) -> Store:
    """Return the store at a path."""
    return LocalStore(os.fspath(out))


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
            with suppress(OSError):
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
        except OSError as e:
            with suppress(OSError):
                tmp.unlink()
            raise DataError(
                f"{self.name}/{name}: cannot be written ({e.strerror}); check the folder and the disk"
            ) from None

    def clean(self) -> None:
        """Remove the folder of files that were being written."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path / TMP)
