"""Plan memory: feature maps are placed in one arena; those whose lifetimes do not overlap share memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from .steps import ALIGNMENT, FeatureMap, Step


def allocate(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], alignment: int) -> tuple[list[int], int]:
    """Return an offset for each buffer, and the arena's size. lifetimes: first and last step that uses it, inclusive.

    Greedy by size: the largest first, each into the smallest gap between buffers that are live at the same time.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    end = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], lifetimes[i])):
        size = -(-sizes[i] // alignment) * alignment
        first, last = lifetimes[i]
        overlapping = sorted(
            (offsets[j], sizes[j]) for j in placed if lifetimes[j][0] <= last and first <= lifetimes[j][1]
        )
        best, best_gap, free = -1, 0, 0
        for offset, length in overlapping:
            gap = offset - free
            if gap >= size and (best < 0 or gap < best_gap):
                best, best_gap = free, gap
            free = max(free, -(-(offset + length) // alignment) * alignment)
        offsets[i] = free if best < 0 else best
        placed.append(i)
        end = max(end, offsets[i] + size)
    return offsets, end


def peak_live(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], alignment: int) -> int:
    """Return the largest total size live at one step: a lower bound on the arena."""
    change: dict[int, int] = {}
    for size, (first, last) in zip(sizes, lifetimes, strict=True):
        aligned = -(-size // alignment) * alignment
        change[first] = change.get(first, 0) + aligned
        change[last + 1] = change.get(last + 1, 0) - aligned
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def place(lifetimes: Mapping[FeatureMap, Sequence[int]], batch: int) -> tuple[dict[FeatureMap, int], int, int]:
    """Place storages, each live from its first to its last use; return offsets, arena size and peak_live, in elements."""
    sizes = [batch * prod(m.shape) for m in lifetimes]
    spans = [(uses[0], uses[-1]) for uses in lifetimes.values()]
    offsets, size = allocate(sizes, spans, ALIGNMENT)
    return dict(zip(lifetimes, offsets, strict=True)), size, peak_live(sizes, spans, ALIGNMENT)


def plan_memory(
    steps: Sequence[Step], input: FeatureMap, outputs: Sequence[FeatureMap], batch: int
) -> tuple[dict[FeatureMap, int], int, int]:
    """Place the storage of every map; return offsets, arena size and peak_live, in elements.

    A storage is live from the first step that writes any part of it to the last that reads one.
    """
    lifetimes: dict[FeatureMap, list[int]] = {input: [-1, -1]}
    for i, step in enumerate(steps):
        for m in (step.y, *step.reads):
            lifetimes.setdefault(m.storage, [i, i])[1] = i
    for m in outputs:
        lifetimes[m.storage][1] = len(steps)
    return place(lifetimes, batch)
