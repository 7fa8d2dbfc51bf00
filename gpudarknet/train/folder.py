"""The folder of a training: the names of its files, and a lock that keeps a second training of the same name out."""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..errors import TrainError, TrainWarning
from ..io import lock as locks
from ..io.atomic import remove_stale_tmp


class TrainingFolder:
    """The files that a training of base.cfg writes to a folder; `with` creates, checks and locks it. ~ is the home folder.

    Raises TrainError if the folder cannot be written, or if another training writes the same files; the operating system
    releases its lock when its process ends, however it ends. A folder that this created and nothing was written to is
    removed again.
    """

    def __init__(self, path: str | Path, base: str):
        if Path(base).name != base:
            raise TrainError(f"base={base}: must be a file name; choose the folder with `folder`")
        self.base = base
        try:
            self.path = Path(path).expanduser()
        except RuntimeError as e:
            raise TrainError(f"{path}: cannot be used as the weights folder ({e}); write its whole path") from None
        self._lock: TextIO | None = None
        self.state, self.chart = self.path / f"{base}_last.npz", self.path / f"chart_{base}.png"

    def weights(self, kind: str | int) -> Path:
        """Return the path of weights: "last", "best", "ema", "final", or those of an iteration."""
        return self.path / f"{self.base}_{kind}.weights"

    @property
    def is_open(self) -> bool:
        """Whether the `with` block runs."""
        return self._lock is not None

    def __enter__(self) -> TrainingFolder:
        base = re.escape(self.base)
        weights, state = rf"{base}_(last|best|ema|final|\d+)\.weights", rf"{base}_last(\.next)?\.npz"
        names = rf"{weights}|{state}|chart_{base}\.(csv|png)"
        try:
            self._created = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            taken = next((p for p in self.path.iterdir() if re.fullmatch(names, p.name) and p.is_dir()), None)
        except OSError as e:
            raise TrainError(
                f"{self.path}: cannot be used as the weights folder ({e.strerror}); change backup in the .data file"
            ) from None
        if taken:
            raise TrainError(f"{taken}: is a folder, so the training cannot write this file; remove it")
        lock = self.path / f".{self.base}.lock"
        try:
            self._lock = self._acquire(lock)
            remove_stale_tmp(self.path, names)
        except OSError as e:
            self._remove_if_empty()
            raise TrainError(
                f"{lock}: cannot be written ({e.strerror}); check the folder and the disk, or change backup in the .data file"
            ) from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            with suppress(OSError):  # Windows keeps a file that is open
                os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self._created:
            with suppress(OSError):
                self.path.rmdir()

    def _acquire(self, path: Path) -> TextIO:
        """Lock a file, and write into it who holds the lock."""
        while True:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as it is locked
            try:
                lock(file)
                if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    file.truncate(0)
                    file.write(
                        f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                    )
                    file.flush()
                    return file
                file.close()  # its owner has removed it in between
            except OSError as e:
                if e.errno in locks.LOCKED:
                    file.seek(0)
                    owner = file.read() or "another process"
                    file.close()
                    raise TrainError(
                        f"{self.path}: a training of {self.base} is running here ({owner}); stop it, or change backup in the"
                        " .data file"
                    ) from None
                with suppress(OSError):
                    os.unlink(path)
                with suppress(OSError):
                    file.close()
                raise


def lock(file: TextIO) -> None:
    """Lock a file. Raises OSError, of io.lock.LOCKED if another file object holds the lock; warns if locks are not available."""
    try:
        locks.lock(file)
    except OSError as e:
        if e.errno in locks.LOCKED:
            raise
        warnings.warn(
            f"{file.name}: cannot be locked ({e.strerror}); do not start a second training in this folder",
            TrainWarning, stacklevel=5,
        )  # fmt: skip
