"""Checkpoint files: named arrays in one .npz file, saved next to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TrainError
from ..io.atomic import atomic_write

VERSION = 2  # of the file format
EXTRA = "extra/"


def state_path(weights: str | Path) -> Path:
    """Return the path of the training state that belongs to a weights file: the same name with .npz."""
    return Path(weights).with_suffix(".npz")


def write(path: str | Path, state: dict[str, np.ndarray], extra: Mapping[str, ArrayLike] | None = None) -> None:
    """Write a state and, as extra/NAME, all else that a run needs to resume; atomically. Raises TrainError."""
    arrays = state | {EXTRA + name: np.asarray(value) for name, value in (extra or {}).items()}
    try:
        with atomic_write(path) as tmp, open(tmp, "wb") as file:
            np.savez(file, version=np.array(VERSION), **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise TrainError(f"{path}: cannot be written ({e.strerror}); check the folder and the disk") from None


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the state and the extra arrays that `write` stored. Raises TrainError if the file is not a checkpoint."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if int(arrays.pop("version")) != VERSION:
            raise ValueError("of another version")
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile):
        raise TrainError(f"{path}: is not a checkpoint of this program; remove it to start over") from None
    extra = {name: arrays.pop(name) for name in list(arrays) if name.startswith(EXTRA)}
    return arrays, {name.removeprefix(EXTRA): a for name, a in extra.items()}
