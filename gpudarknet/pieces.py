"""Large arrays in pieces: so that what is done to one stays in its core's cache, and cores can share the work.

Where a cut falls depends on the sizes alone, never on the number of cores, so that results do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from threading import Lock
from typing import Any

import numpy as np

from .cores import Task

PIECE = 1 << 18  # numbers of each map: 1 MB; smaller ones wait for the interpreter's lock more than they gain


def cut(length: int, most: int) -> list[tuple[int, int]]:
    """Cut a length into nearly equal (from, to), none longer than `most`."""
    count = -(-length // max(1, most))
    return list(pairwise(length * i // count for i in range(count + 1)))


def spread(share: Callable[[Sequence[Task]], None], work: Callable[..., Any], args: tuple[Any, ...], axis: int) -> Any:
    """Return work(*args), made of pieces of its maps (N, C, H, W) along an axis: 0, the images, or 1, the channels.

    share(tasks) does the work. Vectors (C,) are cut with the channels; whatever else there is, each piece gets whole.
    """
    sizes = next((a.shape for a in args if getattr(a, "ndim", 0) > 3), (1,) * 4)
    parts = cut(sizes[axis], PIECE * sizes[axis] // max(prod(sizes), 1))
    if len(parts) < 2:
        return work(*args)
    lock = Lock()
    whole: list[Any] = []  # made for the first piece, which shows how many results there are

    def piece(a: Any, part: slice) -> Any:
        if isinstance(a, (list, tuple)):
            return type(a)(piece(v, part) for v in a)
        if getattr(a, "ndim", 0) > 3:
            return a[part] if axis == 0 else a[:, part]
        return a[part] if axis == 1 and isinstance(a, np.ndarray) else a

    def like(a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(map(like, a))
        shape = list(a.shape)
        shape[axis if a.ndim > 3 else 0] = sizes[axis]
        return np.empty(shape, a.dtype)

    def task(part: slice) -> Task:
        def run() -> None:
            found = work(*(piece(a, part) for a in args))
            with lock:
                if not whole:
                    whole.append(like(found))
            for a, there in zip(*map(several, (found, whole[0])), strict=True):
                piece(there, part)[...] = a

        return run

    share([task(slice(*part)) for part in parts])
    return whole[0]


def several(found: Any) -> tuple[Any, ...]:
    """Return what was found as a tuple."""
    return found if isinstance(found, tuple) else (found,)
