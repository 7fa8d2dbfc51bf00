"""Maps as matrices (pixels, channels), and pieces of them that stay in a core's cache.

How a map is split never depends on the number of workers, so that sums have the same bits for any number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ....backend.threads import split_range
from ..command_list import CommandList

PIECE = 1 << 15  # elements that one command of a pointwise pass processes: with scratch they stay in L2
RUN = 1 << 11  # elements of a contiguous run along which values per channel are repeated
MIN_SHARE = 1 << 16  # elements of a pointwise pass that are worth waking a worker: some 30 microseconds
MIN_TASKS = 8  # tasks of a stage, if there is enough work: cores that can share it evenly


@cache
def constant(length: int, value: float) -> np.ndarray:
    """Return a vector of equal values, to sum or to average rows by a gemm."""
    a = np.full(length, value, np.float32)
    a.flags.writeable = False
    return a


as_strided = np.lib.stride_tricks.as_strided


def as_pixels(a: np.ndarray) -> np.ndarray:
    """View a map (N, H, W, C), whose pixels may be strided, as (N*H*W, C)."""
    N, H, W, C = a.shape
    return as_strided(a, (N * H * W, C), a.strides[2:])


def piece_size(channels: int) -> int:
    """Return the pixels of a piece."""
    return max(1, PIECE // channels)


def split_pixels(pixels: int, channels: int) -> list[tuple[int, int]]:
    """Split a matrix (pixels, channels) into pieces: ranges of pixels (from, to), of which only the last is smaller."""
    size = piece_size(channels)
    return [(a, min(a + size, pixels)) for a in range(0, pixels, size)]


def share(count: int, workers: int, size: int = MIN_SHARE) -> list[tuple[int, int]]:
    """Split things that are computed independently of each other into a range (from, to) for each worker.

    size: elements of each thing. One worker gets all of little work: waking another takes longer.
    """
    workers = max(1, min(workers, count * size // MIN_SHARE))
    return split_range(count, -(-count // workers))


class ChannelTile:
    """Values per channel (C,), repeated to a contiguous run, which NumPy combines faster with (pixels, C) than C values."""

    def __init__(self, channels: int, commands: CommandList | None = None):
        """commands: to make it in scratch."""
        shape = max(1, RUN // channels), channels
        self.values = np.zeros(shape, np.float32) if commands is None else commands.scratch("tile", *shape)

    def set(self, values: np.ndarray) -> None:
        """Set the values of all channels."""
        np.copyto(self.values, values)

    def run(self, repeats: int) -> np.ndarray:
        """Return the values, repeated; at most as often as this tile has them."""
        return self.values[:repeats].reshape(-1)

    def apply(self, commands: CommandList, ufunc: Callable[..., object], a: np.ndarray, out: np.ndarray) -> None:
        """Record out = ufunc(a, values), for a and out (pixels, C)."""
        runs, (k, C) = len(a) // len(self.values), self.values.shape
        if not (a.flags.c_contiguous and out.flags.c_contiguous) or runs == 0:
            commands.record(ufunc, a, self.values[0], out=out)
            return
        end = runs * k
        flat, target = a[:end].reshape(runs, k * C), out[:end].reshape(runs, k * C)
        commands.record(ufunc, flat, self.values.reshape(-1), out=target)
        if end < len(a):
            rest = len(a) - end
            commands.record(ufunc, a[end:].reshape(-1), self.values[:rest].reshape(-1), out=out[end:].reshape(-1))


class PixelSums:
    """Partial sums per channel of a map, one for each piece in the order of the pieces, and their total.

    count: sums (C,) of a piece.
    """

    def __init__(self, pieces: int, count: int, channels: int):
        self.parts = np.zeros((pieces, count * channels), np.float32)
        self.count = count
        self.total = np.zeros((count, channels), np.float32)

    def add(self, commands: CommandList, piece: int, k: int, a: np.ndarray) -> None:
        """Record sum k of a piece: that of a (pixels, C) over its pixels."""
        commands.record(np.matmul, constant(len(a), 1), a, out=self.parts[piece].reshape(self.count, -1)[k])

    def sum(self) -> np.ndarray:
        """Return the totals (count, C)."""
        np.matmul(constant(len(self.parts), 1), self.parts, out=self.total.reshape(-1))
        return self.total
