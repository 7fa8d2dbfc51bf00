"""Checkpoints: a weights file, and next to it the training state, named arrays in one .npz file.

The weights are the commit: `save` writes the state as x_last.next.npz, replaces x_last.weights, and renames the state to
x_last.npz. Wherever a process is killed, one of the two states is that of the weights.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .. import weights as weights_files
from ..errors import TrainError, WeightsError
from ..graph import Node, owner
from ..io.atomic import atomic_write

VERSION = 2  # of the file format
EXTRA = "extra/"
State = dict[str, np.ndarray]


def state_path(weights: str | Path) -> Path:
    """Return the path of the training state that belongs to a weights file: the same name with .npz."""
    return Path(weights).with_suffix(".npz")


def next_state_path(weights: str | Path) -> Path:
    """Return the path of the state of weights that are about to be written."""
    return Path(weights).with_suffix(".next.npz")


def states_of(weights: Path) -> list[Path]:
    """Return the existing files that may be the state of weights, which may be a link to those of a training."""
    places = dict.fromkeys((weights, weights.resolve()))
    return [path for place in places for path in (next_state_path(place), state_path(place)) if path.exists()]


def save(weights: Path, state: State, extra: Mapping[str, ArrayLike], save_weights: Callable[[Path], None]) -> None:
    """Write a checkpoint. Raises TrainError, WeightsError; the last checkpoint is then complete, as it is if killed."""
    pending = next_state_path(weights)
    write(pending, state, extra)
    try:
        save_weights(weights)
    except WeightsError:
        pending.unlink(missing_ok=True)
        raise
    try:
        os.replace(pending, state_path(weights))
    except OSError as e:
        raise TrainError(f"{state_path(weights)}: cannot be written ({e.strerror}); check the folder") from None


def write(path: str | Path, state: State, extra: Mapping[str, ArrayLike] | None = None) -> None:
    """Write a state and, as extra/NAME, all else that a run needs to resume; atomically. Raises TrainError."""
    arrays = state | {EXTRA + name: np.asarray(value) for name, value in (extra or {}).items()}
    with atomic_write(path, TrainError) as tmp, zipfile.ZipFile(tmp, "w") as file:  # np.savez reports some errors late
        for name, array in {"version": np.array(VERSION), **arrays}.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read(path: str | Path) -> tuple[State, State]:
    """Return the state and the extra arrays that `write` stored. Raises TrainError if the file is not a checkpoint."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if int(arrays.pop("version")) != VERSION:
            raise ValueError("of another version")
    except FileNotFoundError:
        raise TrainError(f"{path}: does not exist, so training cannot be resumed; check the path") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        raise TrainError(f"{path}: is not a checkpoint of this program; remove it to start over") from None
    extra = {name: arrays.pop(name) for name in list(arrays) if name.startswith(EXTRA)}
    return arrays, {name.removeprefix(EXTRA): a for name, a in extra.items()}


def belongs_to(state: State, weights: str | Path, nodes: Sequence[Node]) -> bool:
    """Return whether a weights file is, bit by bit, the one that was written with this state."""
    try:
        arrays = [
            {name: state[f"weights/{owner(n)}/{name}"] for name, _, _, _ in weights_files.stored_arrays(n, False)}
            for n in nodes
        ]
        with open(weights, "rb") as file:
            parts = weights_files.content(nodes, arrays, int(state["seen"]))
            return all(file.read(len(part)) == part for part in parts) and not file.read(1)
    except (KeyError, OSError):
        return False
