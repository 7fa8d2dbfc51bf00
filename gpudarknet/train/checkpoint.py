"""The sidecar of a checkpoint: named arrays in one .npz file, from which training goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from ..errors import TrainError
from ..graph import owner
from ..io.atomic import atomic_write

if TYPE_CHECKING:
    from . import Trainer

VERSION = 2  # of the layout


def write(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, whole or not at all. Raises TrainError."""
    try:
        with atomic_write(path) as tmp, open(tmp, "wb") as file:
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


def groups(trainer: Trainer) -> dict[str, Sequence[dict[str, Any]]]:
    """Return a training's arrays: kind -> for each layer, name -> array. Shared weights are their owner's."""
    net, xp = trainer.net, trainer.net.backend.xp
    own = [owner(n) == n.index for n in net.nodes]
    arrays = [{k: a for k, a in w.items() if isinstance(a, xp.ndarray)} if mine else {}
              for w, mine in zip(net.weights, own, strict=True)]  # fmt: skip
    found: dict[str, Sequence[dict[str, Any]]] = {
        "weights": arrays,
        "gradients": [g if mine else {} for g, mine in zip(trainer.gradients, own, strict=True)],
        "m": [{k: m for k, (m, _) in pairs.items()} for pairs in trainer.moments],
        "v": [{k: v for k, (_, v) in pairs.items()} for pairs in trainer.moments],
    }
    return found | ({"average": trainer.average} if trainer.average is not None else {})


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    """Return weights, gradients, moments and the place in the schedule as arrays of the host."""
    arrays = {
        "seen": np.array(trainer.net.seen),
        "seed": np.array(trainer.seed),
        "scale": trainer.scale.numbers(),
        "rejection": trainer.rejection.numbers(),
    }
    for kind, layers in groups(trainer).items():
        for i, own in enumerate(layers):
            arrays |= {f"{kind}/{i}/{name}": trainer.net.backend.to_numpy(a) for name, a in own.items()}
    return arrays


def restore(trainer: Trainer, arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Take over what `state` returned; path is for messages. Raises TrainError for another network's."""
    net = trainer.net
    if trainer.average is None and any(name.startswith("average/") for name in arrays):
        trainer.average = [{k: a.copy() for k, a in own.items() if hasattr(a, "copy")} for own in net.weights]
    for kind, layers in groups(trainer).items():
        for i, own in enumerate(layers):
            for name, a in own.items():
                stored = arrays.get(f"{kind}/{i}/{name}")
                if stored is None or stored.shape != a.shape:
                    raise TrainError(f"{path}: belongs to another cfg ({trainer.place(i)} differs); remove it")
                a[...] = net.backend.asarray(stored)
    net.program_cache.clear()
    trainer.scale.take(arrays["scale"])
    trainer.rejection.take(arrays["rejection"])
    net.seen, trainer.seed = int(arrays["seen"]), int(arrays["seed"])
    trainer.iteration = net.seen // max(trainer.batch, 1)
