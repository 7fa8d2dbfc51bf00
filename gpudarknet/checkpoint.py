"""The sidecar of a checkpoint: named arrays in one .npz file, from which training goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from .errors import TrainError
from .files import atomic

VERSION = 1  # of the layout


def write(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, whole or not at all. Raises TrainError."""
    try:
        with atomic(path) as beside, open(beside, "wb") as file:
            np.savez(file, version=np.array(VERSION), **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise TrainError(f"{path}: cannot be written ({e.strerror}); check the folder and the disk") from None


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read arrays. Raises TrainError for a file that is no checkpoint."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if int(arrays.pop("version")) != VERSION:
            raise ValueError("of another version")
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile):
        raise TrainError(f"{path}: is not a checkpoint of this program; remove it to begin anew") from None
    return arrays
