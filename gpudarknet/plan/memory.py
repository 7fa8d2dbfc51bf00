"""Place maps in one arena: maps that are never alive together share memory."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(sizes: Sequence[int], lives: Sequence[tuple[int, int]], alignment: int) -> tuple[list[int], int]:
    """Return an offset for each size, and the arena's size. lives: (first, last) step that touches it, both included.

    Greedy by size: the largest first, each into the tightest gap left by those that live at the same time.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    end = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], lives[i])):
        size = -(-sizes[i] // alignment) * alignment
        beside = sorted(
            (offsets[j], sizes[j]) for j in placed if lives[j][0] <= lives[i][1] and lives[i][0] <= lives[j][1]
        )
        best, gap, free = -1, 0, 0
        for offset, length in beside:
            room = offset - free
            if room >= size and (best < 0 or room < gap):
                best, gap = free, room
            free = max(free, -(-(offset + length) // alignment) * alignment)
        offsets[i] = free if best < 0 else best
        placed.append(i)
        end = max(end, offsets[i] + size)
    return offsets, end


def peak_live(sizes: Sequence[int], lives: Sequence[tuple[int, int]], alignment: int) -> int:
    """Return the most that is alive at one step: no placement can need less."""
    change: dict[int, int] = {}
    for size, (first, last) in zip(sizes, lives, strict=True):
        whole = -(-size // alignment) * alignment
        change[first] = change.get(first, 0) + whole
        change[last + 1] = change.get(last + 1, 0) - whole
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most
