"""The folder of a training: the names of its files, and a lock that keeps a second training of the same name out."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..errors import TrainError, TrainWarning
from ..io import lock
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
        path = self.path / f".{self.base}.lock"
        try:
            self._lock = self._acquire(path)
            remove_stale_tmp(self.path, names)
        except OSError as e:
            self._remove_if_empty()
            raise TrainError(
                f"{path}: cannot be written ({e.strerror}); check the folder and the disk, or change backup in the .data file"
            ) from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            lock.release(self._lock)
            self._lock = None
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self._created:
            with suppress(OSError):
                self.path.rmdir()

    def _acquire(self, path: Path) -> TextIO:
        """Lock a file. Raises TrainError if another training holds it; warns if locks are not available."""

        def unavailable(e: OSError) -> None:
            warnings.warn(
                f"{path}: cannot be locked ({e.strerror}); do not start a second training in this folder",
                TrainWarning, stacklevel=5,
            )  # fmt: skip

        try:
            return lock.acquire(path, unavailable)
        except lock.HeldError as e:
            raise TrainError(
                f"{self.path}: a training of {self.base} is running here ({e}); stop it, or change backup in the .data file"
            ) from None
