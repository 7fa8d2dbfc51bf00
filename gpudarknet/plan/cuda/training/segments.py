"""Many arrays in one launch: segments of a flat buffer, each with blocks of its own (kernels/segments.cuh)."""

from __future__ import annotations

from collections.abc import Iterable

BLOCK = 256  # threads
SEGMENT_BLOCK = 1024  # elements of a block


def first_blocks(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return the first block of each segment of so many elements, and the number of blocks."""
    first, total = [], 0
    for size in sizes:
        first.append(total)
        total += -(-size // SEGMENT_BLOCK)
    return first, total
