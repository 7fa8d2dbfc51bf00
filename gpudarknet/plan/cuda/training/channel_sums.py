"""Sums over the pixels of each channel (kernels/channel_sums.cuh): how blocks share a map."""

from __future__ import annotations

from typing import NamedTuple

from ....ops.activation import NAMES
from ..epilogue import VECTOR_ACTIVATIONS
from ..view import View

BLOCK, DEPTH, WARP = (
    256,
    8,
    32,
)  # threads of a block; pixels of a thread; threads that read neighboring channels, at most


class ChannelSums(NamedTuple):
    """A grid for sums over the pixels of a map of C channels: parts of its pixels by chunks of its channels.

    lanes: threads with different channels. vectorized: a thread has 16 bytes of channels, otherwise one.
    """

    C: int
    lanes: int
    chunks: int
    parts: int
    vectorized: bool

    @classmethod
    def of(cls, *maps: View, kind: str = "linear") -> ChannelSums:
        """Return the grid for maps of one shape, which the kernel accesses at the same places; kind: its activation."""
        C, width = maps[0].shape[0], 16 // maps[0].a.itemsize
        vectorized = kind in VECTOR_ACTIVATIONS and all(m.can_vectorize(width) for m in maps)
        columns = C // width if vectorized else C
        lanes = min(WARP, 1 << (columns - 1).bit_length())
        return cls(C, lanes, -(-columns // lanes), -(-maps[0].pixels // (DEPTH * BLOCK // lanes)), vectorized)

    @property
    def threads(self) -> int:
        """Threads of the launch."""
        return BLOCK * self.chunks * self.parts

    @property
    def partial_shape(self) -> tuple[int, int, int]:
        """The workspace of partial sums, float32. Launches in a row may share it."""
        return self.parts, 2, self.C


def pointwise_threads(*maps: View, kind: str = "linear") -> tuple[int, bool]:
    """Return the threads of a kernel that has one element of these maps each, or 16 bytes: and whether these."""
    C, width = maps[0].shape[0], 16 // maps[0].a.itemsize
    vectorized = kind in VECTOR_ACTIVATIONS and all(m.can_vectorize(width) for m in maps)
    return maps[0].pixels * C // (width if vectorized else 1), vectorized


def activation_code(kind: str) -> int:
    """Return the number of an activation in the kernels."""
    return NAMES.index(kind)
